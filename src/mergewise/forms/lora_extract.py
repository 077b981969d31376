"""A LoRA from a fine-tuned model and its base, with the error of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import (
    CODES,
    TensorRef,
    is_pre_layer,
    open_checkpoint,
    stored_turned,
    tied_head,
)
from mergewise.errors import IncompatibleModelsError, MergewiseError
from mergewise.forms._adapter_files import (
    Factors,
    NewAdapter,
    check_folder,
    relative,
    usual_dtype,
    write_adapter,
)
from mergewise.forms._changes import Changes, CheckpointChanges, Described
from mergewise.forms._svd import Rank, cut, product_norm, truncated

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = ("F64", "F32", "F16", "BF16")
Progress = Callable[[int, int], None]
"""Called with (bytes of the models read, bytes in all)."""


@dataclass(frozen=True)
class LayerError:
    """How well one weight's change is kept.

    Attributes:
        name: of the weight.
        rank: of its factors.
        change: Frobenius norm of the change, fine-tuned minus base.
        error: Frobenius norm of what is lost, as stored, divided by `change`.
    """

    name: str
    rank: int
    change: float
    error: float


@dataclass(frozen=True)
class Extracted:
    """What an extraction made.

    Attributes:
        layers: every weight that got factors.
        error: lost share of the Frobenius norm of all their changes together.
        whole: names of changed tensors that are stored whole (norms, biases).
        skipped: names of changed tensors that were left out as asked.
        unchanged: how many tensors are the same in both models.
        bytes_written: of the adapter's weights.
    """

    out: Path
    layers: tuple[LayerError, ...]
    error: float
    whole: tuple[str, ...]
    skipped: tuple[str, ...]
    unchanged: int
    bytes_written: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        layers = [vars(layer) for layer in self.layers]
        return {**vars(self), "out": str(self.out), "layers": layers}


def extract_lora(
    finetuned: Path | str,
    base: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rest: str = "whole",
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extracted:
    """Write a LoRA that turns `base` into (nearly) `finetuned`, in PEFT's format.

    The change of each weight is cut by a randomised SVD, one tensor in memory at a time; its
    singular values are shared out evenly between A and B, and every scale is 1.

    Args:
        rank: of every weight, at most.
        energy: instead, or besides: the least rank that keeps this share of the squared norm.
        rest: what becomes of changed tensors that are no weight matrices: ``whole`` (norms and
            biases are stored as they are in the fine-tuned model) or ``skip``.
        dtype: of the factors; by default that of the fine-tuned model, if it has one.
        overwrite: replace an adapter in `out`.

    Raises:
        MergewiseError: for a rank or energy out of range, or models that are the same.
        IncompatibleModelsError: if the models' tensors do not fit together.
        NonFiniteError: if a model holds NaN or infinity.
        CheckpointError, OutputError: if a file cannot be read or written.
    """
    changes = CheckpointChanges(open_checkpoint(finetuned), open_checkpoint(base))
    wanted = _rank(rank, energy)
    return Extraction(
        changes, Path(out), wanted, _rest(rest), dtype, overwrite, progress
    ).run()  # fmt: skip


def _rank(rank: int | None, energy: float | None) -> Rank:
    if rank is None and energy is None:
        raise MergewiseError(
            "how large may the factors be? --rank 16 (rank=16), --energy 0.9 (energy=0.9), or both"
        )
    if rank is not None and rank < 1:
        raise MergewiseError(f"rank: a number from 1 on expected, got {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise MergewiseError(f"energy: a share above 0 and at most 1 expected, got {energy}")
    return Rank(rank, energy)


def _rest(rest: str) -> str:
    if rest not in ("whole", "skip"):
        raise MergewiseError(f"rest: whole or skip expected, got {rest!r}")
    return rest


@dataclass
class Extraction:
    """Makes an adapter of what a model has more than its base.

    Args:
        rank: without limits, only for changes whose factors are known.
        dtype: of the factors.
    """

    changes: Changes
    out: Path
    rank: Rank
    rest: str
    dtype: str | None
    overwrite: bool
    progress: Progress | None

    def run(self) -> Extracted:
        """Check, read every tensor, and write the folder.

        Raises:
            MergewiseError: as `extract_lora` says.
        """
        self._base = self.changes.base
        self._check()
        kind = self.dtype or usual_dtype({t.dtype for t in self.changes.tensors.values()
                                          if t.dtype in _FLOATS})  # fmt: skip
        if kind not in ("float64", "float32", "float16", "bfloat16"):
            raise MergewiseError(f"dtype: {kind!r} is no type of factors; float32, say, is")
        check_folder(self.out, self.overwrite)
        self._kind: torch.dtype = getattr(torch, kind)
        self._made, self._layers = NewAdapter(), list[LayerError]()
        self._skipped, self._unchanged, self._turned = list[str](), 0, False
        self._read_all()
        if not self._made.factors:
            raise MergewiseError(
                f"{self.changes.label}: no weight matrix differs from {self._base.path}, so there "
                "is no adapter to extract; are these the models you mean?"
            )
        self._name_rest()
        size = write_adapter(self.out, self._made, self._kind, self.changes.origin)
        lost = sum((layer.error * layer.change) ** 2 for layer in self._layers) ** 0.5
        return Extracted(
            self.out, tuple(self._layers),
            relative(lost, sum(layer.change**2 for layer in self._layers) ** 0.5),
            tuple(n.replace(".base_layer.", ".") for n in self._made.whole),
            tuple(self._skipped), self._unchanged, size,
        )  # fmt: skip

    def _check(self) -> None:
        mine, theirs = self.changes.tensors, self._base.tensors
        tie = tied_head(theirs.keys(), self._base.config)
        odd = sorted((mine.keys() ^ theirs.keys()) - ({tie[0]} if tie else set()))
        if odd:
            where = self.changes.label if odd[0] in mine else self._base.path
            raise IncompatibleModelsError(
                f"{len(odd)} tensors are in one of the models only, such as {odd[0]} in {where}; "
                "was this model fine-tuned from that base?"
            )
        if tie and tie[0] in mine and tie[0] not in theirs:
            self._check_head(*tie)
        for name, ref in mine.items():
            other = theirs.get(name)
            if other is not None and other.shape != ref.shape:
                raise IncompatibleModelsError(
                    f"tensor {name}: shape {list(ref.shape)} in {self.changes.label}, "
                    f"{list(other.shape)} in {self._base.path}; an adapter cannot change shapes "
                    "(a vocabulary that grew is not mapped yet)"
                )
            if other is not None:
                self._check_type(ref, other)
        if self.rest == "whole":
            self._check_rest()

    def _check_type(self, ref: Described, other: TensorRef) -> None:
        """Numbers that an adapter cannot change are the same in both, or a refusal names them."""
        if ref.dtype in _FLOATS and other.dtype in _FLOATS:
            return
        if not self.changes.equal(ref.name):
            raise IncompatibleModelsError(
                f"tensor {ref.name}: {ref.dtype} in {self.changes.label} and {other.dtype} in "
                f"{self._base.path}, and they differ; an adapter changes floating-point weights "
                "only (quantised models: use the unquantised ones)"
            )

    def _check_head(self, head: str, embedding: str) -> None:
        """A head that the base has only as its embedding must be the same as the embedding."""
        if not torch.equal(self.changes.read(head), self.changes.read(embedding)):
            raise IncompatibleModelsError(
                f"{head} of {self.changes.label} is not its {embedding}, and {self._base.path} "
                "has one tensor for both; an adapter of it cannot hold two changes"
            )

    def _check_rest(self) -> None:
        """Large tensors that cannot be stored as factors are named before any work."""
        odd = [
            ref
            for ref in self.changes.tensors.values()
            if len(ref.shape) > 1 and ref.dtype in _FLOATS and not ref.name.endswith(".weight")
            if ref.name in self._base.tensors and not self.changes.same(ref.name)
        ]
        if odd and any(self._differ(ref.name) for ref in odd):
            raise MergewiseError(
                f"{odd[0].name}: {list(odd[0].shape)}, no module's weight, so that LoRA has no "
                "factors for it; pass rest='skip' (--rest skip) to leave such tensors out"
            )

    def _differ(self, name: str) -> bool:
        return bool((self.changes.delta(name)[1] != 0).any())

    def _read_all(self) -> None:
        tensors = self.changes.tensors
        total, done = sum(ref.nbytes for ref in tensors.values()), 0
        for name, ref in tensors.items():
            if ref.dtype in _FLOATS and name in self._base.tensors:
                self._take(ref)
            done += ref.nbytes
            if self.progress:
                self.progress(done, total)

    def _take(self, ref: Described) -> None:
        if self.changes.same(ref.name):
            self._unchanged += 1
            return
        weight = ref.name.endswith(".weight") and len(ref.shape) > 1
        known = self.changes.factors(ref.name) if weight else None
        if known is not None:
            self._sum(ref, *known)
            return
        mine, delta = self.changes.delta(ref.name)
        if not (delta != 0).any():
            self._unchanged += 1
        elif weight:
            self._factor(ref, delta)
        elif self.rest == "skip":
            self._skipped.append(ref.name)
        else:
            self._made.whole[ref.name] = mine.to(getattr(torch, _torch_name(ref)))

    def _sum(self, ref: Described, b: Tensor, a: Tensor, size: float) -> None:
        """A change whose factors are known; cut only if its rank is limited."""
        new = cut(b, a, size, self.rank)
        change = product_norm(b, a)
        if not len(new[1]):
            self._unchanged += 1
            return
        b_, a_ = (part.to(self._kind).to(b.dtype) for part in new)
        lost = product_norm(torch.cat([b, b_], dim=1), torch.cat([a, -a_]))
        self._store(ref, b_, a_, change, lost)

    def _factor(self, ref: Described, delta: Tensor) -> None:
        matrix = delta.T if self._stands(ref) else delta.flatten(1)
        b, a = (part.to(self._kind).float() for part in truncated(matrix, self.rank))
        change = float(matrix.double().norm())
        lost = float((matrix - b.to(matrix.dtype) @ a.to(matrix.dtype)).double().norm())
        self._store(ref, b, a, change, lost)

    def _stands(self, ref: Described) -> bool:
        """Whether a weight is stored [inputs, outputs]."""
        embeds = len(ref.shape) == 2 and is_pre_layer(ref.name)
        return embeds or (len(ref.shape) == 2 and self._is_turned(ref))

    def _store(self, ref: Described, b: Tensor, a: Tensor, change: float, lost: float) -> None:
        embeds = len(ref.shape) == 2 and is_pre_layer(ref.name)
        self._turned |= not embeds and self._stands(ref)
        self._layers.append(LayerError(ref.name, len(a), change, relative(lost, change)))
        if len(ref.shape) > 2:  # a convolution: its kernel in A
            a = a.reshape(len(a), *ref.shape[1:])
            b = b.reshape(*b.shape, *(1 for _ in ref.shape[2:]))
        self._made.factors[ref.name.removesuffix(".weight")] = Factors(b, a, embeds)

    def _is_turned(self, ref: Described) -> bool:
        return bool(stored_turned(ref.name, self._base.tensors))

    def _name_rest(self) -> None:
        """How PEFT finds what is stored whole: biases as such, other modules by their names."""
        made = self._made
        biases = [name for name in made.whole if name.endswith(".bias")]
        for name in biases:
            module = name.removesuffix(".bias")
            if module in made.factors:
                made.whole[f"{module}.base_layer.bias"] = made.whole.pop(name)
        others = [name.rpartition(".")[0] for name in made.whole if not name.endswith(".bias")]
        tie = tied_head(self._base.tensors.keys(), self._base.config)
        made.config = {
            "bias": "all" if biases else "none",
            "modules_to_save": sorted(set(others)) or None,
            "fan_in_fan_out": self._turned,
            "target_modules": self._targets(),
            "ensure_weight_tying": bool(tie and tie[1].removesuffix(".weight") in made.factors),
        }
        if self._base.origin:  # a local path would mean nothing elsewhere
            made.config["base_model_name_or_path"] = self._base.origin.repo

    def _targets(self) -> list[str]:
        """Last parts of names where they say it all, else whole names."""
        weights = [n.removesuffix(".weight") for n, t in self._base.tensors.items()
                   if n.endswith(".weight") and len(t.shape) > 1]  # fmt: skip
        chosen = self._made.factors.keys()
        ends: dict[str, bool] = {}
        for module in weights:
            end = module.rpartition(".")[2]
            ends[end] = ends.get(end, True) and module in chosen
        short = {m.rpartition(".")[2] for m in chosen if ends[m.rpartition(".")[2]]}
        return sorted(short) + sorted(m for m in chosen if m.rpartition(".")[2] not in short)


def _torch_name(ref: Described) -> str:
    return next(name for name, code in CODES.items() if code == ref.dtype)
