"""Weighted averages of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._weights import cancel, combination, no_share, shares

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Method):
    """Weighted mean of the models' weights ("model soup" with equal weights)."""

    name = "linear"
    summary = "weighted average of the weights themselves"
    advice = (
        "The first thing to try with checkpoints of one run, or with experts that are close "
        "to one another. Of experts for different tasks it keeps little: each one's change is "
        "divided by their number."
    )
    base = "ignored"
    formula = "sum_i w_i x_i / sum_i w_i   (no division if normalize is false)"
    source = "Model soups (Wortsman et al. 2022, arXiv 2203.05482)"
    params = {
        "weight": Param(float, REQUIRED, "share of this model", per_model=True),
        "normalize": Param(bool, True, "divide by the sum of the weights"),
    }
    example = """
merge_method: linear
models:
  - model: expert_a
    parameters: {weight: 0.5}
  - model: expert_b
    parameters: {weight: 0.5}
"""

    def problem(self, p: Settings, experts: int) -> str | None:
        return no_share(p.weight) if p.normalize and cancel(p.weight) else None

    def summed(self, p: Settings) -> list[float] | None:
        found = shares(p.weight) if p.normalize else list(p.weight)
        return found if abs(sum(found) - 1) < 1e-6 else None

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"share": shares(p.weight) if p.normalize else list(p.weight)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        return combination(x.experts, s.share)
