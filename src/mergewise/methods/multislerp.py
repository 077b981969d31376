"""Spherical interpolation of any number of models, in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._gram import BLUR, gram_matrix, gram_terms, length, norms
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._weights import cancel, combination, no_share, shares

if TYPE_CHECKING:
    from torch import Tensor


def _vectors(x: Inputs) -> list[Tensor]:
    return list(x.experts) if x.base is None else x.deltas


class MultiSlerp(Method):
    """The weighted mean direction, at the weighted mean length.

    The published formula then corrects in the tangent plane at that mean, but the correction is
    identically zero there: the mean direction is by construction the one that leaves no residue.
    Where the weighted directions cancel there is no direction to go, and the weighted sum of
    the vectors is taken instead. A single expert is returned as it is.
    """

    name = "multislerp"
    summary = "a weighted mean of directions on the sphere, for any number of models"
    advice = (
        "Slerp for more than two models; with a base, of task vectors. For models that are "
        "nearly parallel it differs little from linear."
    )
    base = "optional"
    formula = "(sum_i w_i |x_i|) m, m = sum_i w_i u_i made unit length, u_i = x_i / |x_i|"
    source = "multi-SLERP (Goddard 2025, goddard.blog); mergekit"
    params = {
        "weight": Param(float, REQUIRED, "share of this model", per_model=True),
        "normalize_weights": Param(bool, True, "divide by the sum of the weights"),
        "eps": Param(float, 1e-8, "lengths below this count as none", gt=0),
    }
    example = """
merge_method: multislerp
models:
  - model: expert_a
    parameters: {weight: 0.5}
  - model: expert_b
    parameters: {weight: 0.5}
"""

    def normalized(self, p: Settings) -> str:
        return "normalize_weights" if p.normalize_weights else ""

    def problem(self, p: Settings, experts: int) -> str | None:
        if p.normalize_weights and experts > 1 and cancel(p.weight):
            return no_share(p.weight, "normalize_weights")
        return None

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(_vectors(x)) if len(x.experts) > 1 else {}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        if len(p.weight) == 1:
            return {"share": [1.0]}
        weights = shares(p.weight, "normalize_weights") if p.normalize_weights else list(p.weight)
        gram = gram_matrix(totals)
        lengths = norms(gram)
        pull = [w / (size + p.eps) for w, size in zip(weights, lengths, strict=True)]
        reach = length(gram, pull)
        if reach < max(p.eps, BLUR * sum(abs(w) for w in weights)):
            return {"share": weights}
        scale = sum(w * size for w, size in zip(weights, lengths, strict=True))
        return {"share": [scale * c / reach for c in pull]}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        out = combination(_vectors(x), s.share)
        return out if x.base is None else x.base + out
