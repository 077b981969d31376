"""The class that `transformers` has for a checkpoint, without weights, and its renaming rules."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergewise._lazy import torch
from mergewise.checkpoint._files import shown
from mergewise.errors import CheckpointError

_COUNTS = re.compile(r".*(layers?|depths?|blocks?|stages?|experts)|num_labels")
_MOST = 2048
"""Layers, or experts, that a config may state; building a model of more would take minutes."""
_MOST_EXPERTS = 100_000
"""The same of all layers together."""
_MOST_LABELS = 1_000_000
_LEFT_OUT = ("quantization_config", "compression_config", "auto_map", "_attn_implementation",
             "attn_implementation")  # fmt: skip


class CannotConvert(CheckpointError):
    """No conversion between layouts: `transformers` is absent, or does not know the class."""


def meta_model(config: Mapping[str, Any] | None) -> Any:
    """The model that a config describes, on the meta device: names and shapes, no memory.

    Only classes of `transformers` itself are built; code beside a checkpoint is never run.

    Raises:
        CannotConvert: with the reason.
    """
    config = config or {}
    _check_counts(config)
    try:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        raise CannotConvert(
            "its names can be converted by transformers, which is not installed: "
            "pip install 'mergewise[hf]'"
        ) from None
    kind, names = config.get("model_type"), config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if kind not in CONFIG_MAPPING or not _is_model(cls):
        raise CannotConvert(
            f"transformers {transformers.__version__} has no class for it (model_type "
            f"{shown(kind)}, architectures {shown(names)})"
        )
    usable = {k: copy.deepcopy(v) for k, v in config.items() if k not in _LEFT_OUT}
    try:
        with torch.device("meta"):
            return cls(CONFIG_MAPPING[kind].from_dict(usable))
    except Exception as error:  # any: a config of a stranger, run through a hundred models' code
        reason = f"{type(error).__name__}: {error}"
        raise CannotConvert(f"its config does not make a {name}: {shown(reason)}") from None


def _is_model(cls: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(cls, type) and issubclass(cls, PreTrainedModel)


def _check_counts(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model would take forever to set up."""
    counts = list(_counts(config))
    for key, value in counts:
        most = _MOST_LABELS if key == "num_labels" else _MOST
        if value > most:
            raise CannotConvert(f"its config's {shown(key)} is {value:,}, more than {most:,}")
    experts = max((value for key, value in counts if key.endswith("experts")), default=1)
    layers = max((value for key, value in counts if "layer" in key), default=1)
    if experts * layers > _MOST_EXPERTS:
        raise CannotConvert(f"its config states {layers:,} layers of {experts:,} experts")


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif _COUNTS.fullmatch(str(key)):
            numbers = value if isinstance(value, list) else [value]
            yield from ((key, number) for number in numbers if type(number) is int)
