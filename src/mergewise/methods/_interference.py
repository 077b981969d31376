"""How much a merged task vector disturbs what the experts changed, layer by layer.

    L(M) = sum_i |(M - T_i) L_i^T|_F^2 / |d_i|_F^2

The rows of a task vector d_i span, by and large, the inputs that it was trained on, so that d_i
itself can stand for data (WUDI, arXiv 2503.08099): T_i = L_i = d_i. OptMerge cuts both down.

The loss is a quadratic of M whose curvature C = sum_i L_i^T L_i / |d_i|^2 is one matrix over the
inputs, and its gradient at a start R = sum_i (start - T_i) L_i^T L_i / |d_i|^2. So a step costs one
product, however many experts there are, and the minimum is known in C's eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._descent import adam, sgd
from mergewise.methods._params import Param
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-8
"""The least eigenvalue of C, whose eigenvalues sum to the number of experts (authors' code)."""
_ROUNDING = 1e-13

START = Param(
    str,
    "sum",
    "where it starts, and what is kept of directions that say nothing: the sum of task vectors, "
    "their mean, or zero",
    choices=("sum", "mean", "zero"),
    native=True,
)


def started(deltas: Sequence[Tensor], how: str) -> Tensor:
    """The start that `START` names."""
    factor = {"sum": 1.0, "mean": 1.0 / len(deltas), "zero": 0.0}[how]
    return total(deltas) * factor


class Interference:
    """The loss around a start; experts whose task vector is zero have no part in it.

    Args:
        start: [outputs, inputs]; the result's type.
        parts: T_i [outputs, inputs] and L_i / |d_i| [any, inputs] in float64, taken one by one.
        rows: of all L_i together.
    """

    def __init__(self, start: Tensor, parts: Iterable[tuple[Tensor, Tensor]], rows: int) -> None:
        self.start = start
        self._inputs = start.shape[1]
        self.pull = torch.zeros_like(start, dtype=torch.float64)
        # one matrix over the inputs if that is the smaller, else all guards' rows
        self._curved = self._inputs <= rows
        self._held = self.pull.new_zeros(min(self._inputs, rows), self._inputs)
        at = 0
        for target, guard in parts:
            self._take(start.to(torch.float64, copy=True).sub_(target), guard, at)
            at += len(guard)

    @classmethod
    def of(cls, deltas: Sequence[Tensor], how: str) -> Interference:
        """WUDI's, from the start that `START` names; some task vectors are not zero."""
        sizes = [float(delta.double().norm()) for delta in deltas]
        parts = ((d, d.double() / size) for d, size in zip(deltas, sizes, strict=True) if size > 0)
        rows = sum(size > 0 for size in sizes) * len(deltas[0])
        return cls(started(deltas, how), parts, rows)

    @staticmethod
    def room(outputs: int, inputs: int, rows: int, descends: bool) -> float:
        """How many numbers of 8 bytes it takes, its start's and its result's too."""
        size, side, curved = outputs * inputs, min(inputs, rows), inputs <= rows
        held = side * inputs + 1.5 * size
        building = 3.0 * size + curved * inputs**2
        if descends:
            factor = inputs**2 if inputs <= 2 * rows else side * inputs
            begun = 1.5 * factor * (not curved)
            return held + max(building, begun, factor / 2 + 4.5 * size)
        minimising = side * (side + inputs) + 1.5 * size
        return held + max(building, (3.0 if curved else 4.0) * side**2, minimising)

    def _take(self, away: Tensor, guard: Tensor, at: int) -> None:
        # the cheaper of x (L^T L) and (x L^T) L
        if self._curved and self._inputs <= 2 * len(guard):
            gram = guard.mT @ guard
            self._held += gram
            self.pull.addmm_(away, gram)
            return
        self.pull.addmm_(away @ guard.mT, guard)
        if self._curved:
            self._held.addmm_(guard.mT, guard)
        else:
            self._held[at : at + len(guard)] = guard

    def descended(self, optimiser: str, steps: int, learning_rate: float) -> Tensor:
        """The start after some steps of `adam` or `sgd` (momentum 0.9), in the start's type."""
        slope = self._slope()
        still = torch.zeros_like(self.start)
        if optimiser == "adam":
            return self.start + adam(slope, still, steps, learning_rate)
        return self.start + sgd(slope, still, steps, learning_rate, momentum=0.9)

    def _slope(self) -> _Slope:
        # the cheaper of x (C) and (x S^T) S
        if self._curved or self._inputs <= 2 * len(self._held):
            factors = [self._curvature().to(self.start.dtype)]
        else:
            guards = self._held.to(self.start.dtype)
            factors = [guards.mT, guards]
        return _Slope(self.pull.to(self.start.dtype), factors)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """C's eigenvalues [r], descending, and vectors [inputs, r], of the smaller Gram matrix.

        With fewer rows than inputs only directions are given in which C is not zero.
        """
        if self._curved:
            values, vectors = torch.linalg.eigh(self._curvature())
            return values.flip(0).clamp(min=0), vectors.flip(1)
        stack = self._held
        values, left = torch.linalg.eigh(stack @ stack.mT)
        kept = values > _ROUNDING * values[-1]
        values, left = values[kept].flip(0), left[:, kept].flip(1)
        return values, (stack.mT @ left).div_(values.sqrt())

    def _curvature(self) -> Tensor:
        return self._held if self._curved else self._held.mT @ self._held

    def minimised(self, values: Tensor, vectors: Tensor, factors: Tensor) -> Tensor:
        """The start moved to the minimum, along each eigenvector by its factor of the way.

        Factors that are zero come last.
        """
        count = int((factors > 0).sum())
        used = vectors[:, :count]
        step = (self.pull @ used).mul_((factors / values.clamp(min=FLOOR))[:count])
        return self.start - (step @ used.mT).to(self.start.dtype)


class _Slope:
    """The gradient, as a function of how far the start has moved."""

    def __init__(self, pull: Tensor, factors: list[Tensor]) -> None:
        self._pull = pull
        self._factors = factors

    def __call__(self, moved: Tensor) -> Tensor:
        out = moved
        for factor in self._factors:
            out = out @ factor
        return out.add_(self._pull).mul_(2)


RANK_RULE = Param(
    str,
    "participation_sqrt",
    "how many eigenvectors are used: (sum sqrt(l))^2 / sum l, (sum l)^2 / sum l^2, exp(entropy "
    "of l), sum l^2 / max l^2, or all of them",
    choices=("participation_sqrt", "participation", "entropy", "stable_rank", "all"),
    native=True,
)


def counted(values: Tensor, inputs: int, rule: str) -> int:
    """How many eigenvectors `RANK_RULE` uses, of eigenvalues descending.

    Eigenvalues count as no less than `FLOOR`, those that are zero and not listed too.
    """
    rest = torch.full((inputs - len(values),), FLOOR, dtype=values.dtype)
    whole = torch.cat([values.clamp(min=FLOOR), rest.to(values.device)])
    if rule == "all":
        return inputs
    if rule == "participation_sqrt":
        found = float(whole.sqrt().sum() ** 2 / whole.sum())
    elif rule == "participation":
        found = float(whole.sum() ** 2 / whole.square().sum())
    elif rule == "stable_rank":
        found = float(whole.square().sum() / whole[0] ** 2)
    else:
        share = whole / whole.sum()
        found = math.exp(float(-(share * share.log()).sum()))
    return max(1, min(inputs, math.ceil(found)))


def first(values: Tensor, count: int) -> Tensor:
    """Factors for `Interference.minimised`: 1 for the first `count` eigenvectors, then 0."""
    out = torch.zeros_like(values)
    out[:count] = 1.0
    return out
