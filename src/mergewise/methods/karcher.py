"""The Karcher mean: the point of the sphere closest to all models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._gram import BLUR, Gram, gram_matrix, gram_terms, inner, length, norms, walk
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


def _unit(size: int, i: int, value: float) -> list[float]:
    return [value if j == i else 0.0 for j in range(size)]


def _start(gram: Gram, units: Sequence[Sequence[float]], tol: float) -> list[float]:
    mean = [sum(column) / len(units) for column in zip(*units, strict=True)]
    reach = length(gram, mean)
    return [c / reach for c in mean] if reach > max(tol, BLUR) else list(units[0])


def _towards(gram: Gram, point: Sequence[float], unit: Sequence[float]) -> list[float]:
    """The tangent at `point` that leads to `unit`; none if they are the same or opposite."""
    cos = max(-1.0, min(1.0, inner(gram, point, unit)))
    sine = math.sqrt(1.0 - cos * cos)
    ratio = math.acos(cos) / sine if sine > BLUR else float(cos > 0)
    return [ratio * (u - cos * c) for u, c in zip(unit, point, strict=True)]


def karcher_direction(
    gram: Gram, units: Sequence[Sequence[float]], max_iter: int, tol: float
) -> list[float]:
    """The unit vector whose summed squared angles to `units` are least, as coefficients."""
    point = _start(gram, units, tol)
    for _ in range(max_iter):
        steps = [_towards(gram, point, unit) for unit in units]
        tangent = [sum(column) / len(steps) for column in zip(*steps, strict=True)]
        if length(gram, tangent) < tol:
            break
        point = walk(gram, point, tangent)
        size = length(gram, point)
        point = [c / size for c in point]
    return point


class Karcher(Method):
    """The Riemannian centre of the models' directions, at their mean length.

    Models whose tensor is zero have no direction; they count with length zero in the mean.
    Where directions cancel exactly, the search starts from the first model's, and a direction
    opposite to the current one pulls nowhere.
    """

    name = "karcher"
    summary = "the mean of directions on the sphere, found by iteration"
    advice = (
        "The mean of any number of models on the sphere, all counting alike. For models that "
        "are nearly parallel it differs little from linear, and takes several passes to find."
    )
    base = "ignored"
    formula = "mean_i |x_i| * argmin_u sum_i angle(u, x_i)^2"
    source = "Riemannian center of mass (Karcher 1977); mergekit"
    params = {
        "max_iter": Param(int, 10, "most steps of the iteration", ge=0),
        "tol": Param(float, 1e-5, "stop when the step is shorter than this (radians)", gt=0),
    }
    example = """
merge_method: karcher
models:
  - model: expert_a
  - model: expert_b
"""

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(x.experts)

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        gram = gram_matrix(totals)
        lengths = norms(gram)
        count = len(lengths)
        units = [_unit(count, i, 1.0 / size) for i, size in enumerate(lengths) if size > 0]
        if not units:
            return {"share": [0.0] * count}
        scale = sum(lengths) / count
        direction = karcher_direction(gram, units, p.max_iter, p.tol)
        return {"share": [scale * c for c in direction]}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        return combination(x.experts, s.share)
