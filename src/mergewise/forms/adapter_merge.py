"""Several adapters of one base as one adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.checkpoint import Adapter, open_adapter
from mergewise.errors import IncompatibleModelsError, MergewiseError, OutputError
from mergewise.forms._adapter_files import (
    AdapterFactors,
    Factors,
    NewAdapter,
    check_folder,
    relative,
    usual_dtype,
    write_adapter,
)
from mergewise.forms._factor_space import left_alone, merged_alone, with_defaults
from mergewise.forms._ia3 import NewIA3, all_ia3, merged_vectors, refuse_options
from mergewise.forms._span import Pair, flat_factors, merged_in_span
from mergewise.forms._svd import Rank, cut, product_norm, recompressed, truncated
from mergewise.forms._units import REWEIGHT, Reweight, merged_units
from mergewise.forms.lora_extract import LayerError
from mergewise.methods import Settings, get_method

if TYPE_CHECKING:
    from torch import Tensor

Space = Literal["delta", "factor", "units"]
Progress = Callable[[int, int], None]
"""Called with (modules done, modules in all)."""


@dataclass(frozen=True)
class MergedAdapter:
    """What merging adapters made.

    Attributes:
        layers: each module's rank, and the error against what was asked for: 0 for a
            concatenation but for rounding, what a smaller rank loses for an SVD.
        error: the same of all modules together.
        bytes_written: of the weights.
        warnings: what is odd.
    """

    out: Path
    layers: tuple[LayerError, ...]
    error: float
    bytes_written: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        layers = [vars(layer) for layer in self.layers]
        return {**vars(self), "out": str(self.out), "layers": layers}


def merge_adapters(
    adapters: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] | None = None,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    space: Space = "delta",
    negate_b: bool = False,
    rank: int | None = None,
    energy: float | None = None,
    reweight: Reweight = "both",
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergedAdapter:
    """Merge LoRAs of one base into one LoRA, or IA3 adapters into one, in PEFT's format.

    In the space of deltas, which is the default, the merged adapter's ``B @ A`` is the weighted
    sum of the adapters' ``s * B @ A``: exactly, by concatenating their factors (ranks add up), or
    with `rank` or `energy` by the nearest matrix of lower rank. With `method` the deltas are
    merged by any method of task vectors, as if the base were zero, and then cut to `rank` or
    `energy`; thresholds are found weight by weight. A module that an adapter leaves alone counts
    as a delta of zero.

    In the space of factors, A and B are merged apart, as LoRA soups, LoraHub and "add" modes do:
    ``(sum w B) @ (sum w A)`` has cross terms and is another result. Scales are multiplied into B.

    In the space of units (LoRA-LEGO, arXiv 2409.16167), a row of A with its column of B is one
    unit; the units of all adapters are clustered, weight by weight, and the merged adapter has
    one for each of `rank` clusters. `_units` says where its two scalings are from.

    Args:
        weights: one for each adapter; by default 1/n each, and 1 in the space of units. Not
            normalised.
        method: such as ``ties``; its `weight` is taken from `weights`.
        parameters: of the method.
        negate_b: in the space of factors, a negative weight turns B alone, and A is multiplied by
            its size: the negation of PEM (Zhang et al., 2023, arXiv 2306.14870).
        rank, energy: as `extract_lora` takes them; needed with `method` in the space of deltas,
            and `rank` in that of units.
        reweight: in the space of units, which of the two scalings are made: ``parameter``,
            ``output``, ``both`` or ``none``.
        seed: of random masks and of clustering.

    Raises:
        MergewiseError: for arguments that make no sense.
        IncompatibleModelsError: if the adapters do not fit together.
        NotBuiltYetError: for adapters that are more than low-rank matrices.
        CheckpointError, NonFiniteError, OutputError: if a file cannot be read or written.
    """
    opened = [open_adapter(path) for path in adapters]
    share = 1.0 if space == "units" else 1 / max(1, len(opened))
    each = list(weights) if weights is not None else [share] * len(opened)
    wanted = Rank(rank, energy)
    multiplies = all_ia3(opened)
    if multiplies:
        refuse_options({
            "method": method is not None, "parameters": bool(parameters), "space": space != "delta",
            "rank": rank is not None, "energy": energy is not None, "negate_b": negate_b,
            "reweight": reweight != "both",
        })  # fmt: skip
    _check(opened, each, method, space, wanted)
    if reweight not in REWEIGHT:
        raise MergewiseError(f"reweight: {', '.join(REWEIGHT)} expected, got {reweight!r}")
    if negate_b and (space != "factor" or method):
        raise MergewiseError("negate_b belongs to weighted sums in space factor, and to no method")
    _refuse_own_inputs(Path(out), opened)
    check_folder(Path(out), overwrite)
    codes = {ref.dtype for a in opened for module in a.modules.values() for ref in module.values()}
    kind: torch.dtype = getattr(torch, dtype or usual_dtype(codes))
    if multiplies:
        shared = _shared_config(opened)
        shared.pop("ensure_weight_tying", None)
        vectors = dict(merged_vectors(opened, [str(path) for path in adapters], each))
        return _written(Path(out), NewIA3(vectors, shared), kind, opened)
    known = [AdapterFactors(a, str(p)) for a, p in zip(opened, adapters, strict=True)]
    merging = _Merging(known, each, method, dict(parameters or {}), wanted, seed)
    merging.negate_b, merging.reweight = negate_b, reweight
    return merging.run(Path(out), space, kind, progress)


def _written(
    out: Path, made: NewIA3, kind: torch.dtype, adapters: Sequence[Adapter]
) -> MergedAdapter:
    """Write merged vectors, and say how far each is from 1."""
    size = write_adapter(out, made, kind, ", ".join(adapter.folder.name for adapter in adapters))
    layers = tuple(
        LayerError(f"{module}.ia3_l", 0, float((vector - 1).norm()), 0.0)
        for module, vector in made.vectors.items()
    )
    return MergedAdapter(out, layers, 0.0, size, tuple(_warnings(adapters)))


def _refuse_own_inputs(out: Path, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        if out.resolve() in {adapter.folder.resolve(), adapter.file.resolve().parent}:
            raise OutputError(
                f"{out}: is the folder of the input {adapter.folder}, or holds its files; choose "
                "another output folder"
            )


def _check(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: str | None,
    space: str,
    rank: Rank,
) -> None:
    if len(adapters) < 2 and not (adapters and all(a.config.kind == "IA3" for a in adapters)):
        raise MergewiseError(f"two or more adapters expected, got {len(adapters)}")
    if len(weights) != len(adapters) or not all(-1e9 < w < 1e9 for w in weights):
        raise MergewiseError(
            f"weights: {len(adapters)} finite numbers expected, one for each adapter; got "
            f"{list(weights)}"
        )
    if space not in ("delta", "factor", "units"):
        raise MergewiseError(f"space: delta or factor or units expected, got {space!r}")
    if rank.most is not None and rank.most < 1:
        raise MergewiseError(f"rank: a number from 1 on expected, got {rank.most}")
    if rank.energy is not None and not 0 < rank.energy <= 1:
        raise MergewiseError(f"energy: a share above 0 and at most 1 expected, got {rank.energy}")
    if method:
        get_method(method)
    cut = rank.most is not None or rank.energy is not None
    if space == "factor" and cut:
        raise MergewiseError("space factor keeps the adapters' rank; leave rank and energy out")
    if space == "units" and (rank.most is None or rank.energy is not None or method):
        raise MergewiseError(
            "space units clusters into as many units as --rank (rank=) says; it takes no method "
            "or energy"
        )
    if space == "delta" and method and not cut:
        raise MergewiseError(
            f"{method} gives dense matrices, which factors can only approach; say how closely: "
            "--rank 16 (rank=16), --energy 0.9 (energy=0.9), or both"
        )


@dataclass
class _Merging:
    known: Sequence[AdapterFactors]
    weights: Sequence[float]
    method: str | None
    parameters: dict[str, Any]
    rank: Rank
    seed: int
    negate_b: bool = False
    reweight: Reweight = "both"

    def run(
        self, out: Path, space: Space, kind: torch.dtype, progress: Progress | None
    ) -> MergedAdapter:
        self._layers: list[LayerError] = []
        self._dropped: dict[str, list[str]] = {}
        made = NewAdapter(config=self._config())
        modules = list(dict.fromkeys(m for known in self.known for m in known.modules))
        self._prepare()
        for done, module in enumerate(modules, 1):
            each = [known.read(module) for known in self.known]
            self._check_module(module, each)
            one = {"factor": self._factor, "units": self._units, "delta": self._delta}[space]
            factors = one(module, each, kind)
            if factors.rank:
                made.factors[module] = factors
            elif self.method and (why := left_alone(module, each, self.method, self.parameters)):
                self._dropped.setdefault(why, []).append(module)
            if progress:
                progress(done, len(modules))
        if not made.factors:
            why = "; ".join(self._told_of_dropped()) or "the adapters cancel one another out"
            raise MergewiseError(f"nothing is left to write: {why}")
        size = write_adapter(out, made, kind, ", ".join(k.adapter.folder.name for k in self.known))
        lost = sum((layer.error * layer.change) ** 2 for layer in self._layers) ** 0.5
        whole = sum(layer.change**2 for layer in self._layers) ** 0.5
        return MergedAdapter(
            out, tuple(self._layers), relative(lost, whole), size, tuple(self._warnings())
        )

    def _prepare(self) -> None:
        """Unknown methods and parameters are found before any work."""
        if self.method is None:
            if self.parameters:
                raise MergewiseError("parameters belong to a method; name one, such as ties")
            return
        self._apply({"x": [torch.zeros(2, 2)] * len(self.known)})

    def _apply(self, tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The method's merge of some tensors, with a base of zeros."""
        chosen = get_method(self.method or "")
        given = dict(self.parameters)
        if "weight" in chosen.params and "weight" not in given:
            given["weight"] = list(self.weights)
        return merged_alone(tensors, chosen.name, given, self.seed)

    def _check_module(self, module: str, each: Sequence[Factors | None]) -> None:
        shapes = {(f.b.shape[0], *f.a.shape[1:], f.embeds) for f in each if f}
        if len(shapes) > 1:
            raise IncompatibleModelsError(
                f"module {module}: the adapters change weights of different shapes; are they of "
                "one base?"
            )

    def _delta(self, module: str, each: Sequence[Factors | None], kind: torch.dtype) -> Factors:
        like = next(f for f in each if f)
        if self.method is not None and not any(turns := self._turns(module, like)):
            wanted = self._merged_delta(module, each, like)
            new = truncated(wanted, self.rank, self.seed)
            new_b, new_a = (part.to(kind).to(wanted.dtype) for part in new)
            change = float(wanted.double().norm())
            self._note(module, len(new_a), change, float((wanted - new_b @ new_a).norm()))
        else:
            if self.method is None:
                b, a, new = self._weighted(each)
            else:
                merge = partial(self._merged_matrices, module)
                b, a = merged_in_span(flat_factors(each), turns, merge)
                new = recompressed(b, a, self.rank)
            new_b, new_a = (part.to(kind).to(b.dtype) for part in new)
            lost = product_norm(torch.cat([b, new_b], dim=1), torch.cat([a, -new_a]))
            self._note(module, len(new_a), product_norm(b, a), lost)
        kernel = like.a.shape[1:]
        ones = like.b.shape[2:]
        return Factors(
            new_b.reshape(*new_b.shape, *ones), new_a.reshape(len(new_a), *kernel), like.embeds
        )

    def _weighted(self, each: Sequence[Factors | None]) -> tuple[Tensor, Tensor, Pair]:
        """The factors of the weighted sum side by side, and cut."""
        pairs = [(w, f) for w, f in zip(self.weights, each, strict=True) if f]
        b = torch.cat([w * f.b.flatten(1) for w, f in pairs], dim=1)
        a = torch.cat([f.a.flatten(1) for _, f in pairs])
        size = sum(abs(w) * product_norm(f.b.flatten(1), f.a.flatten(1)) for w, f in pairs)
        return b, a, cut(b, a, size, self.rank)

    def _turns(self, module: str, like: Factors) -> tuple[bool, bool]:
        """What may be turned by the method, see `Method.turns`.

        Nothing of embeddings, nor of convolutions that it is not for: turned, they are matrices.
        """
        chosen = get_method(self.method or "")
        kernel = like.a.dim() > 2
        if like.embeds or (kernel and left_alone(module, [like], chosen.name, self.parameters)):
            return False, False
        return chosen.turns(Settings(with_defaults(chosen, self.parameters)))

    def _told_of_dropped(self) -> list[str]:
        return [
            f"{self.method} keeps nothing of {len(modules)} weight{'s' * (len(modules) > 1)}, such "
            f"as {modules[0]} ({why})"
            for why, modules in self._dropped.items()
        ]

    def _merged_delta(self, module: str, each: Sequence[Factors | None], like: Factors) -> Tensor:
        none = like.b.new_zeros(like.shape)
        deltas = [
            (f.b.flatten(1) @ f.a.flatten(1)).reshape(none.shape) if f else none for f in each
        ]
        return self._merged_matrices(module, deltas).flatten(1)

    def _merged_matrices(self, module: str, deltas: Sequence[Tensor]) -> Tensor:
        return self._apply({f"{module}.weight": deltas})[f"{module}.weight"]

    def _factor(self, module: str, each: Sequence[Factors | None], kind: torch.dtype) -> Factors:
        found = [f for f in each if f]
        if len(found) < len(each) or len({f.rank for f in found}) > 1:
            ranks = [f.rank if f else 0 for f in each]
            raise IncompatibleModelsError(
                f"module {module}: ranks {ranks}; in the space of factors all adapters need the "
                "same modules and ranks; use the space of deltas"
            )
        like = found[0]
        if self.method is not None:
            merged = self._apply({"a": [f.a for f in found], "b": [f.b for f in found]})
            b, a = merged["b"], merged["a"]
        else:
            pairs = list(zip(self.weights, found, strict=True))
            b = torch.stack([w * f.b for w, f in pairs]).sum(dim=0)
            sizes = [abs(w) if self.negate_b else w for w in self.weights]
            a = torch.stack([w * f.a for w, f in zip(sizes, found, strict=True)]).sum(dim=0)
        self._note(module, like.rank, product_norm(b.flatten(1), a.flatten(1)), 0.0)
        return Factors(b.to(kind).to(b.dtype), a.to(kind).to(a.dtype), like.embeds)

    def _units(self, module: str, each: Sequence[Factors | None], kind: torch.dtype) -> Factors:
        like = next(f for f in each if f)
        pairs = [
            (w * f.b.flatten(1), f.a.flatten(1))
            for w, f in zip(self.weights, each, strict=True)
            if f
        ]
        b, a = merged_units(pairs, self.rank.most or 1, self.reweight, self.seed)
        self._note(module, len(a), product_norm(b, a), 0.0)
        return Factors(
            b.to(kind).to(b.dtype).reshape(*b.shape, *like.b.shape[2:]),
            a.to(kind).to(a.dtype).reshape(len(a), *like.a.shape[1:]),
            like.embeds,
        )

    def _note(self, module: str, rank: int, change: float, lost: float) -> None:
        self._layers.append(LayerError(f"{module}.weight", rank, change, relative(lost, change)))

    def _config(self) -> dict[str, Any]:
        return _shared_config([known.adapter for known in self.known])

    def _warnings(self) -> list[str]:
        return [*_warnings([known.adapter for known in self.known]), *self._told_of_dropped()]


def _shared_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What the adapters say alike; where they differ, what is plain."""
    raws = [adapter.config.raw for adapter in adapters]
    same = {
        key: raws[0].get(key)
        for key in ("base_model_name_or_path", "task_type", "ensure_weight_tying")
        if all(raw.get(key) == raws[0].get(key) for raw in raws)
    }
    return {**same, "fan_in_fan_out": any(raw.get("fan_in_fan_out") for raw in raws)}


def _warnings(adapters: Sequence[Adapter]) -> list[str]:
    named = [adapter.config.raw.get("base_model_name_or_path") for adapter in adapters]
    bases = {name for name in named if isinstance(name, str) and name}
    if len(bases) > 1:
        listed = ", ".join(repr(name[:200]) for name in sorted(bases))
        return [f"the adapters name different bases: {listed}"]
    return []
