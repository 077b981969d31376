"""``adapter_config.json``: what changes the arithmetic is checked, or named in a refusal.

The keys are PEFT's (0.21.2): LoRA, AdaLoRA and IA3. A key of no effect on a trained adapter's
weights (dropout, how it was initialised) is passed over; one that changes the arithmetic and is
not built is refused if it is set; an unknown key is refused unless its value is empty or false,
because what it does is unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergewise.checkpoint._adapters._patterns import Patterns, pattern_problem
from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError, NotBuiltYetError

_WITHOUT_EFFECT = frozenset((
    "alora_invocation_string", "arrow_config_path", "auto_mapping", "base_model_name_or_path",
    "corda_config", "eva_config", "exclude_modules", "inference_mode", "init_ia3_weights",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
_SCHEDULE = frozenset(
    (
        "beta1",
        "beta2",
        "deltaT",
        "orth_reg_weight",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
    )
)
"""Of AdaLoRA's training."""
_READ = frozenset((
    "alpha_pattern", "bias", "ensure_weight_tying", "fan_in_fan_out", "feedforward_modules",
    "lora_alpha", "lora_bias", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora",
))  # fmt: skip
_NOT_BUILT = frozenset((
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora", "velora_config",
))  # fmt: skip
_MAX_PATTERNS = 10_000
_KINDS: tuple[Literal["LORA", "ADALORA", "IA3"], ...] = ("LORA", "ADALORA", "IA3")
_ADALORA_EPSILON = 1e-5
"""PEFT adds this to the rank that it divides by."""
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights alone."""


@dataclass(frozen=True)
class AdapterConfig:
    """What decides an adapter's arithmetic.

    Attributes:
        rank: where no tensor says otherwise; informative, tensors decide.
        alphas, ranks: by pattern of module names.
        rank_scaled: divide alpha by the root of the rank (rsLoRA, Kalajdzievski 2023, arXiv
            2312.03732).
        turned: weights are stored ``[inputs, outputs]`` (``fan_in_fan_out``).
        raw: the whole file.
    """

    kind: Literal["LORA", "ADALORA", "IA3"]
    rank: int = 8
    alpha: float = 8.0
    ranks: Patterns = field(default_factory=lambda: Patterns({}))
    alphas: Patterns = field(default_factory=lambda: Patterns({}))
    rank_scaled: bool = False
    turned: bool = False
    dora: bool = False
    keeps_tied: bool = False
    raw: dict[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank that the config gives a module."""
        found: int = self.ranks.get(module, self.rank)
        return found

    def scale_of(self, module: str) -> float:
        """What B @ A is multiplied by."""
        if self.kind == "ADALORA":
            return self.alpha / (self.rank + _ADALORA_EPSILON)
        alpha: float = self.alphas.get(module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_scaled else rank)


def parse_adapter_config(raw: dict[str, Any], path: Path) -> AdapterConfig:
    """Check a config that was read from `path`.

    Raises:
        CheckpointError: if a value makes no sense.
        NotBuiltYetError: for an adapter of another kind, and settings that are not built.
    """
    return _Reader(raw, path).read()


class _Reader:
    def __init__(self, raw: dict[str, Any], path: Path) -> None:
        self._raw = raw
        self._path = path

    def read(self) -> AdapterConfig:
        kind = self._kind()
        self._refuse_unknown(kind)
        if kind == "IA3":
            return AdapterConfig("IA3", turned=self._flag("fan_in_fan_out"), raw=self._raw)
        if kind == "ADALORA":
            return self._adaptive()
        if self._raw.get("bias", "none") not in ("none", "all", "lora_only"):
            raise self._bad("bias", "none, all or lora_only")
        self._check_start()
        ranks = {k: self._rank(v, "rank_pattern") for k, v in self._patterns("rank_pattern")}
        alphas = {k: self._number(v, "alpha_pattern") for k, v in self._patterns("alpha_pattern")}
        return AdapterConfig(
            "LORA",
            rank=self._rank(self._raw.get("r", 8), "r"),
            alpha=self._number(self._raw.get("lora_alpha", 8), "lora_alpha"),
            ranks=Patterns(ranks),
            alphas=Patterns(alphas),
            rank_scaled=self._flag("use_rslora"),
            turned=self._flag("fan_in_fan_out"),
            dora=self._flag("use_dora"),
            keeps_tied=self._flag("ensure_weight_tying"),
            raw=self._raw,
        )

    def _adaptive(self) -> AdapterConfig:
        """AdaLoRA: ranks are what the tensors have, scales those of the rank it began with."""
        for key in ("use_rslora", "use_dora", "lora_bias", "alpha_pattern"):
            if self._raw.get(key):
                raise self._bad(key, "nothing of AdaLoRA")
        self._check_start()
        alpha = self._number(self._raw.get("lora_alpha", 8), "lora_alpha")
        if alpha <= 0:
            raise self._bad("lora_alpha", "a number above 0", alpha)
        return AdapterConfig(
            "ADALORA",
            rank=self._rank(self._raw.get("init_r", 12), "init_r"),
            alpha=alpha,
            turned=self._flag("fan_in_fan_out"),
            raw=self._raw,
        )

    def _check_start(self) -> None:
        """PiSSA and its like put a part of the base's weights into the adapter."""
        start = self._raw.get("init_lora_weights")
        if not any(start is known or start == known for known in _HARMLESS_STARTS):
            raise NotBuiltYetError(
                f"{where(self._path)}: init_lora_weights: {shown(start)}: this adapter belongs to "
                "a base whose weights were changed when it was made; save it with PEFT's "
                "path_initial_model_for_weight_conversion, which gives an ordinary LoRA"
            )

    def _kind(self) -> Literal["LORA", "ADALORA", "IA3"]:
        kind = self._raw.get("peft_type")
        for known in _KINDS:
            if kind == known:
                return known
        if not isinstance(kind, str):
            raise self._bad("peft_type", "LORA, ADALORA or IA3")
        raise NotBuiltYetError(
            f"{where(self._path)}: an adapter of kind {shown(kind)}; LORA, ADALORA and "
            "IA3 are read. "
            "Merge it into its base with PEFT (merge_and_unload), and name that folder"
        )

    def _refuse_unknown(self, kind: str) -> None:
        for key, value in self._raw.items():
            if key in _WITHOUT_EFFECT or key in _READ or value in (None, False, [], {}, ""):
                continue
            if kind == "ADALORA" and (key in _SCHEDULE or key == "init_r"):
                continue
            state = "is not built yet" if key in _NOT_BUILT else "is not known to this version"
            raise NotBuiltYetError(
                f"{where(self._path)}: {shown(key)}: {shown(value)} {state}, and may change what "
                f"this {kind} adapter does; merge it into its base with PEFT, and name that folder"
            )

    def _patterns(self, key: str) -> list[tuple[str, Any]]:
        given = self._raw.get(key) or {}
        if not isinstance(given, dict) or len(given) > _MAX_PATTERNS:
            raise self._bad(key, f"at most {_MAX_PATTERNS:,} patterns of module names")
        for pattern in given:
            problem = pattern_problem(pattern)
            if problem:
                raise CheckpointError(f"{where(self._path)}: {key}: {shown(pattern)}: {problem}")
        return list(given.items())

    def _flag(self, key: str) -> bool:
        value = self._raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return bool(value)

    def _rank(self, value: Any, key: str) -> int:
        if type(value) is not int or not 0 < value <= 1 << 20:
            raise self._bad(key, "ranks from 1 on", value)
        return value

    def _number(self, value: Any, key: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e9:
            raise self._bad(key, "a finite number", value)
        return float(value)

    def _bad(self, key: str, expected: str, value: Any = None) -> CheckpointError:
        got = self._raw.get(key) if value is None else value
        return CheckpointError(
            f"{where(self._path)}: {key}: {expected} expected, got {shown(got)}; correct the file"
        )
