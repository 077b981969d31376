"""Arcee Fusion: take over only the changes that matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs, Method
from mergewise.methods._params import Settings

if TYPE_CHECKING:
    from torch import Tensor

_QUANTILES = (0.25, 0.5, 0.75)


def _importance(x: Inputs) -> Tensor:
    """|change|, times how far it moves the row's softmax (Kullback-Leibler, >= 0)."""
    assert x.base is not None
    ours, theirs = (torch.softmax(t, dim=-1) + 1e-8 for t in (x.experts[0], x.base))
    divergence = (ours * torch.log(ours / theirs)).sum(dim=-1, keepdim=True)
    return (x.experts[0] - x.base).abs() * divergence.clamp(min=0.0)


class ArceeFusion(Method):
    """Changes of outlying importance: above the median by one and a half quartile distances.

    The threshold is exact for every size of tensor.
    """

    name = "arcee_fusion"
    summary = "takes from the expert only the changes of outlying importance"
    advice = (
        "For one expert and a base, to take over what stands out and leave the rest. For two "
        "models only; what counts as outlying is a rule, not a measurement."
    )
    family = "arithmetic"
    experts = (1, 1)
    formula = "b + d [I >= Q2 + 1.5 (Q3 - Q1)], I = |d| KL(softmax(x) || softmax(b)) by row"
    source = "Arcee Fusion (Arcee AI 2025, arcee.ai); mergekit"
    unfused = 8
    example = """
merge_method: arcee_fusion
base_model: base
models:
  - model: expert_a
"""

    def access(self, p: Settings) -> Access:
        return Access.ROWS

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [_importance(x)]

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[n - int(q * (n - 1)) for q in _QUANTILES]]

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        low, middle, high = (threshold.value for threshold in p.thresholds[0])
        return {"cut": middle + 1.5 * (high - low)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        delta = x.experts[0] - x.base
        return x.base + torch.where(_importance(x) >= s.cut, delta, torch.zeros_like(delta))
