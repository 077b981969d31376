"""What a task vector's elements are ranked by: their size, or what evidence says they are worth.

With ``d_i`` the task vectors and ``F_i`` each expert's diagonal Fisher information, expert i's
loss rises about ``1/2 F_i (w - w_i)^2`` away from its own weights. So keeping an element of one
expert alone is worth ``1/2 d^2 F`` to that expert (`fisher`); with the mean square ``s`` of the
input channel in place of ``F`` it is the layer's output error (`activation`, |d| sqrt(s): Wanda's
score, Sun et al. 2023, arXiv 2306.11695, of the change instead of the weight). Against all tasks
together, putting ``b + d_i`` in place of the base's ``b`` lowers the summed losses by

    1/2 d_i (2 sum_t F_t d_t - d_i sum_t F_t)

which is `gain` (and `activation_gain`, with ``s_t``): what an element costs the other tasks is
taken off. Elements that cost more than they bring come last, the costliest at the very end. The
two gains are derived here; we know of no paper that has them.

All are ranked by their roots: the same order, and float32 holds them where ``d^2 F`` vanishes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._roots import root
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDE = "magnitude"
_RANKED = "ranked by magnitude"
_FISHER = Need("fisher", "squares", "examples", "element", otherwise=_RANKED)
_ACTIVATION = Need("input_moments", "sum_squares", "tokens", "column", otherwise=_RANKED)
_STATISTICS = {
    "activation": _ACTIVATION,
    "fisher": _FISHER,
    "gain": _FISHER,
    "activation_gain": _ACTIVATION,
}
_UNITS = 2.0**80
"""Of a gain's root, in 1: such that nothing that matters is below one of them, or overflows."""

SCORES = (MAGNITUDE, *_STATISTICS)
"""The rules by name. All but `magnitude` read a statistic of every expert."""

SCORE = Param(
    str,
    MAGNITUDE,
    "what elements are ranked by: |d|; |d| sqrt(s), with input_moments; d^2 F, with fisher; or "
    "what they gain all tasks together, costs included, with fisher or input_moments. Tensors "
    "that the evidence does not describe are ranked by magnitude",
    choices=SCORES,
    native=True,
)


def score_needs(rule: str) -> tuple[Need, ...]:
    """The statistics that a rule reads of every expert; none for `magnitude`."""
    if rule not in _STATISTICS:
        return ()
    return (replace(_STATISTICS[rule], asked_by=f"score: {rule}"),)


def element_score(x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
    """The score of every element of expert i's task vector `delta`, non-negative.

    Args:
        x: with ``x.evidence`` as `score_needs` asks for it, or none: then magnitudes count.
    """
    if s.score == MAGNITUDE or not x.evidence:
        return delta.abs()
    metrics = [torch.clamp(metric, min=0.0) for metric in x.evidence[0]]
    if s.score in ("gain", "activation_gain"):
        return _gain(x.deltas, metrics, i)
    return delta.abs() * root(metrics[i])


def _gain(deltas: list[Tensor], metrics: list[Tensor], i: int) -> Tensor:
    """Positive, and in the order of what the elements of expert i gain, costs included.

    With q the root of the gain's size, in tiny units: q where something is gained, 1/q where it
    costs, 1 where it is less than one unit. The root is made of two, of which neither underflows.
    """
    delta = deltas[i]
    pull = total([d * metric for d, metric in zip(deltas, metrics, strict=True)])
    slope = 2.0 * pull - delta * total(metrics)
    slope = torch.where(delta < 0, -slope, slope)
    size = torch.clamp(root(delta.abs()) * (root(slope.abs()) * _UNITS), min=1.0)
    return torch.where(slope < 0, torch.ones_like(size) / size, size)
