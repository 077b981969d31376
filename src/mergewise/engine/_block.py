"""One block of a tensor's inputs, and what a method may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine._random import hash_positions, order_positions, stream_key, uniform
from mergewise.engine._trace import Expr, Untraceable
from mergewise.methods import Inputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Threshold:
    """A place in the order of (score, hash of position): elements at or above it are kept."""

    value: Any
    tie: Any


@dataclass(frozen=True)
class Shared:
    """What was found over a whole model, for one of its tensors; None for what was not asked."""

    thresholds: list[list[Threshold]] | None = None
    totals: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Keys:
    """Keys of one tensor's random streams; see `_random`."""

    tensor: int
    noise: tuple[int, ...]
    tie: tuple[int, ...]

    @classmethod
    def of(cls, seed: int, name: str, experts: int) -> Keys:
        return cls(
            stream_key(seed, name),
            tuple(stream_key(seed, name, i, "noise") for i in range(experts)),
            tuple(stream_key(seed, name, i, "tie") for i in range(experts)),
        )

    def flat(self) -> list[int]:
        return [self.tensor, *self.noise, *self.tie]


@dataclass
class Block:
    """Elements `start` to `start + size` of every input, as stored.

    Attributes:
        tensors: the base (if there is one) and the experts, each flat.
        columns: elements per row; blocks of row methods hold whole rows.
        shape: the shape in which the method wants to see them (`[-1]` or `[rows, columns]` or
            the tensor's own).
        ranks: row ranks of the scores, float32, flat.
        masks: what the method made of the ranks, bool, flat.
        turned: the tensor is stored [inputs, outputs]; the method is to see the transpose.
        evidence: for each need of the method, each model's statistic, float32, in its own
            shape, or flat where it has the block's elements; empty if the tensor has none.
    """

    start: int
    size: int
    tensors: list[Tensor]
    has_base: bool
    columns: int
    shape: Sequence[int]
    ranks: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    evidence: list[list[Tensor]] = field(default_factory=list)
    turned: bool = False


class _AtLeast(Inputs):
    def _tie(self, expert: int) -> Any:
        raise NotImplementedError

    def at_least(self, score: Any, threshold: Any, expert: int) -> Any:
        above = score > threshold.value
        return above | ((score == threshold.value) & (self._tie(expert) >= threshold.tie))


class TorchInputs(_AtLeast):
    """A block as torch tensors, upcast for arithmetic."""

    def __init__(self, block: Block, keys: Keys, compute: Any, device: Any) -> None:
        views = [t.to(device).to(compute).reshape(block.shape) for t in block.tensors]
        if block.turned:
            views = [view.t() for view in views]
        self.base = views[0] if block.has_base else None
        self.experts = views[1:] if block.has_base else views
        self.ranks = [r.to(device).reshape(block.shape) for r in block.ranks]
        self.masks = [m.to(device).reshape(block.shape) for m in block.masks]
        self.columns = block.columns
        self.evidence = [
            [_shaped(statistic.to(device).to(compute), block) for statistic in each]
            for each in block.evidence
        ]
        self._block = block
        self._keys = keys
        self._device = device
        self.all = views

    def _positions(self) -> Tensor:
        start = self._block.start
        return torch.arange(start, start + self._block.size, device=self._device)

    def noise(self, expert: int) -> Tensor:
        stream = self._keys.noise[expert]
        hashed = hash_positions(self._positions(), self._keys.tensor, stream)
        return uniform(hashed).reshape(self._block.shape)

    def at_least(self, score: Tensor, threshold: Any, expert: int) -> Tensor:
        # thresholds are picked among float32 scores
        return super().at_least(score.to(torch.float32), threshold, expert)

    def _tie(self, expert: int) -> Tensor:
        stream = self._keys.tie[expert]
        order = order_positions(self._positions(), self._keys.tensor, stream)
        return order.reshape(self._block.shape)


def _shaped(statistic: Tensor, block: Block) -> Tensor:
    """Of the block's shape, if it belongs to the block's elements."""
    return statistic.reshape(block.shape) if statistic.dim() == 1 else statistic


class TracedInputs(_AtLeast):
    """The same as expressions. Integer scalars are numbered as `Keys.flat` gives them.

    Args:
        columns: elements per row, if the compiled loop is to be for that number alone.
        needs: for each statistic, of how many models it is; each has one number an element.
    """

    def __init__(
        self,
        experts: int,
        has_base: bool,
        ranks: int,
        masks: int,
        columns: int | None,
        needs: Sequence[int],
    ) -> None:
        count = experts + has_base
        first = count + ranks + masks
        kinds = "f" * (count + ranks) + "b" * masks + "f" * sum(needs)
        inputs: list[Any] = [Expr("input", (i,), kind) for i, kind in enumerate(kinds)]
        self.base = inputs[0] if has_base else None
        self.experts = inputs[has_base:count]
        self.ranks = inputs[count : count + ranks]
        self.masks = inputs[count + ranks : first]
        self.evidence = []
        for models in needs:
            self.evidence.append(inputs[first : first + models])
            first += models
        if columns is not None:
            self.columns = columns
        self._count = experts

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(f"uses x.{name}, which differs from tensor to tensor")

    def _positions(self, op: str, slot: int) -> Expr:
        return Expr(op, (Expr("is", (0,), "i"), Expr("is", (slot,), "i")), "i")

    def noise(self, expert: int) -> Any:
        return Expr("uniform", (self._positions("hash", 1 + expert),), "f")

    def _tie(self, expert: int) -> Any:
        return self._positions("order", 1 + self._count + expert)


@dataclass
class Scalars:
    """Settings split into what shapes the arithmetic and the numbers that only fill it in."""

    structure: tuple[Any, ...]
    floats: list[float]
    ints: list[int]
    traced: dict[str, Any]


def split_settings(values: Mapping[str, Any], keys: Keys) -> Scalars:
    """Number every float of `values`; booleans, strings, integers and None are structure."""
    out = Scalars((), [], keys.flat(), {})
    structure = []
    for name, value in values.items():
        traced, shape = _split(value, out)
        out.traced[name] = traced
        structure.append((name, shape))
    out.structure = tuple(structure)
    return out


def _split(value: Any, out: Scalars) -> tuple[Any, Any]:
    if isinstance(value, Threshold):
        out.floats.append(value.value)
        out.ints.append(value.tie)
        score = Expr("fs", (len(out.floats) - 1,), "f")
        return Threshold(score, Expr("is", (len(out.ints) - 1,), "i")), "threshold"
    if isinstance(value, float):
        out.floats.append(value)
        return Expr("fs", (len(out.floats) - 1,), "f"), "float"
    if isinstance(value, list | tuple):
        pairs = [_split(v, out) for v in value]
        return [p[0] for p in pairs], tuple(p[1] for p in pairs)
    return value, value
