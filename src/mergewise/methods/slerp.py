"""Spherical interpolation between two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._gram import arc, cosine, gram_matrix, gram_terms
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor

# beyond this cosine the arc is a straight line for every purpose, and near 180 degrees undefined
_STRAIGHT = 0.9995


class Slerp(Method):
    """Along the arc between two weight tensors, seen as vectors from the origin."""

    name = "slerp"
    summary = "interpolates two models along an arc, tensor by tensor"
    advice = (
        "For two models of one base, blended by a gradient over the layers. The models' own "
        "weights are interpolated, and where these are nearly parallel it differs little from "
        "linear."
    )
    family = "averages"
    experts = (1, 1)
    formula = "sin((1-t)a)/sin(a) b + sin(ta)/sin(a) x, a = angle(b, x); linear if |cos a| > 0.9995"
    source = "Animating rotation with quaternion curves (Shoemake 1985); mergekit"
    params = {"t": Param(float, REQUIRED, "0 gives the base model, 1 the other")}
    example = """
merge_method: slerp
base_model: base
models:
  - model: expert_a
parameters: {t: 0.5}
"""

    def _vectors(self, x: Inputs) -> list[Tensor]:
        assert x.base is not None
        return [x.base, x.experts[0]]

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(self._vectors(x))

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        cos = cosine(gram_matrix(totals), 0, 1)
        straight = abs(cos) > _STRAIGHT
        return {"share": [1.0 - p.t, p.t] if straight else list(arc(cos, p.t))}

    def mixture(self, p: Settings, base: bool, experts: int) -> list[float]:
        t = min(1.0, max(0.0, p.t))
        return [1.0 - t, t] if base else super().mixture(p, base, experts)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        return combination(self._vectors(x), s.share)
