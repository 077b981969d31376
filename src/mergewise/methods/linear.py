"""Weighted averages of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.errors import MergewiseError
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import REQUIRED, Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Method):
    """Weighted mean of the models' weights ("model soup" with equal weights)."""

    name = "linear"
    summary = "weighted average of the weights themselves"
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

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        total = sum(p.weight) if p.normalize else 1.0
        if total == 0:
            raise MergewiseError("the weights sum to 0 and normalize is true: nothing to divide by")
        return {"share": [w / total for w in p.weight]}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        out = x.experts[0] * s.share[0]
        for tensor, share in zip(x.experts[1:], s.share[1:], strict=True):
            out = out + tensor * share
        return out
