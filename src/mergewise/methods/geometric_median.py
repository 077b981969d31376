"""The geometric median: the point whose summed distances to the experts are least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._gram import Gram, gram_matrix, gram_terms
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination, shares

if TYPE_CHECKING:
    from torch import Tensor

_NEAR = 1e-6
"""Relative to the largest distance: a point nearer than this pulls no harder."""


def _distances(gram: Gram, point: Sequence[float]) -> list[float]:
    """From a combination to each vector."""
    along = [sum(g * c for g, c in zip(row, point, strict=True)) for row in gram]
    own = sum(a * c for a, c in zip(along, point, strict=True))
    return [math.sqrt(max(row[i] - 2 * along[i] + own, 0.0)) for i, row in enumerate(gram)]


def median(gram: Gram, weights: Sequence[float], max_iter: int, tol: float) -> list[float]:
    """The weighted geometric median as shares of the vectors, which sum to 1 (Weiszfeld)."""
    point, before = shares(weights), math.inf
    for _ in range(max_iter):
        away = _distances(gram, point)
        sum_of = sum(w * d for w, d in zip(weights, away, strict=True))
        if sum_of <= 0 or before - sum_of <= tol * sum_of:
            break
        before, least = sum_of, _NEAR * max(away)
        point = shares([w / max(d, least) for w, d in zip(weights, away, strict=True)])
    return point


def _vectors(x: Inputs) -> list[Tensor]:
    origin = x.experts[0] if x.base is None else x.base
    return [expert - origin for expert in x.experts]


class GeometricMedian(Method):
    """A mean that one stray expert cannot pull away: it follows the majority.

    The median is a weighted mean of the experts, whose weights Weiszfeld's iteration finds from
    the inner products of their differences alone, so tensors are read twice, whatever the number
    of steps. A base has no say in it: differences are measured from it, for precision. With three
    or more experts only; of two, every point between them is a median, and the mean is taken.
    """

    name = "geometric_median"
    summary = "the point with the least sum of distances to the experts, robust to a stray one"
    advice = (
        "When one of several models of the same task may be broken or stray. For experts that "
        "are equally far from each other it is close to the mean."
    )
    base = "optional"
    formula = "argmin_m sum_i w_i |x_i - m|, over each tensor or the whole model"
    source = "Weiszfeld 1937; Robust aggregation, RFA (Pillutla et al. 2019, arXiv 1912.13445)"
    variant = (
        "sd-mecha's: one median for each tensor, weights 1/distance; RFA's, of whole models, with "
        "granularity: model"
    )
    params = {
        "weight": Param(float, 1.0, "how much this expert counts", per_model=True, ge=0),
        "granularity": Param(
            str, "tensor", "what a distance is taken over: each tensor or the whole model",
            choices=("tensor", "model"), native=True,
        ),
        "max_iter": Param(int, 100, "most steps of the iteration", ge=0, le=100_000),
        "tol": Param(float, 1e-14, "stop when the sum falls by less than this share", ge=0),
    }  # fmt: skip
    example = """
merge_method: geometric_median
models:
  - model: expert_a
  - model: expert_b
  - model: base
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def problem(self, p: Settings, experts: int) -> str | None:
        return None if sum(p.weight) > 0 else "all weights are 0; give one expert a weight above 0"

    def pooled(self, p: Settings) -> bool:
        return bool(p.granularity == "model")

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(_vectors(x))

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"share": median(gram_matrix(totals), p.weight, p.max_iter, p.tol)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        origin = x.experts[0] if x.base is None else x.base
        return origin + combination(_vectors(x), s.share)
