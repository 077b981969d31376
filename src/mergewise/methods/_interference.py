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
from collections.abc import Sequence
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
        deltas: the task vectors, whose norms are the weights; not all zero.
        targets, guards: T_i and L_i ([any, inputs]); by default the task vectors.
    """

    def __init__(
        self,
        start: Tensor,
        deltas: Sequence[Tensor],
        targets: Sequence[Tensor] | None = None,
        guards: Sequence[Tensor] | None = None,
    ) -> None:
        self.start = start
        self._inputs = start.shape[1]
        self.pull = torch.zeros_like(start, dtype=torch.float64)
        every = guards or deltas
        # one matrix over the inputs if that is the smaller, else all guards' rows
        self._curved = self._inputs <= max(len(guard) for guard in every)
        held: list[Tensor] = []
        for delta, target, guard in zip(deltas, targets or deltas, every, strict=True):
            size = float(delta.double().norm())
            if size > 0:
                self._take(start.double() - target.double(), guard.double() / size, held)
        self._held = held[0] if self._curved else torch.cat(held)

    def _take(self, away: Tensor, guard: Tensor, held: list[Tensor]) -> None:
        if not self._curved:
            self.pull += away @ guard.mT @ guard
            held.append(guard)
            return
        gram = guard.mT @ guard
        self.pull += away @ gram
        held[:] = [held[0] + gram if held else gram]

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
            factors = [self._curvature()]
        else:
            factors = [self._held.mT, self._held]
        kind = self.start.dtype
        return _Slope(self.pull.to(kind), [factor.to(kind) for factor in factors])

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """C's eigenvalues [r], descending, and vectors [inputs, r], of the smaller Gram matrix.

        With fewer rows than inputs only directions are given in which C is not zero.
        """
        if self._curved or self._inputs <= len(self._held):
            values, vectors = torch.linalg.eigh(self._curvature())
            return values.flip(0).clamp(min=0), vectors.flip(1)
        stack = self._held
        values, left = torch.linalg.eigh(stack @ stack.mT)
        kept = values > _ROUNDING * values[-1]
        values, left = values[kept].flip(0), left[:, kept].flip(1)
        return values, stack.mT @ left / values.sqrt()

    def _curvature(self) -> Tensor:
        return self._held if self._curved else self._held.mT @ self._held

    def minimised(self, values: Tensor, vectors: Tensor, factors: Tensor) -> Tensor:
        """The start moved to the minimum, along each eigenvector by its factor of the way."""
        used = vectors[:, factors > 0]
        steps = (factors / values.clamp(min=FLOOR))[factors > 0]
        step = (self.pull @ used) * steps
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
        return (out + self._pull).mul_(2)


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
