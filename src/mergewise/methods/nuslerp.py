"""Spherical interpolation by weights, of whole tensors, rows or columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs, Method
from mergewise.methods._gram import BLUR, arc, cosine, gram_matrix, gram_terms, straight
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._weights import cancel, combination

if TYPE_CHECKING:
    from torch import Tensor


def _vectors(x: Inputs) -> list[Tensor]:
    return list(x.experts) if x.base is None else x.deltas


def _arc_along(a: Tensor, b: Tensor, t: float, dim: int) -> Tensor:
    """Interpolate every vector along `dim` on its own; those without an angle linearly."""
    lengths = a.norm(dim=dim, keepdim=True) * b.norm(dim=dim, keepdim=True)
    dot = (a * b).sum(dim=dim, keepdim=True)
    cos = torch.where(lengths > 0, dot / lengths, torch.zeros_like(dot)).clamp(-1.0, 1.0)
    angle, sine = torch.acos(cos), torch.sqrt(1.0 - cos * cos)
    no_arc = (sine <= 1e-8) | ((cos < 0) & (sine <= BLUR))
    safe = torch.where(no_arc, torch.ones_like(sine), sine)
    ends = [
        torch.where(no_arc, torch.full_like(cos, share), torch.sin(share * angle) / safe)
        for share in (1.0 - t, t)
    ]
    return ends[0] * a + ends[1] * b


class NuSlerp(Method):
    """Spherical interpolation of two models or, with a base, of two task vectors.

    If the weights cancel, the midpoint is taken; vectors without an arc between them (same or
    opposite direction) are interpolated linearly.
    """

    name = "nuslerp"
    summary = "interpolates two models or task vectors along an arc, by weights"
    advice = (
        "As slerp for two models, with weights instead of a position, and with a base between "
        "task vectors. Rotation keeps lengths that an average of unlike task vectors loses."
    )
    base = "optional"
    experts = (2, 2)
    formula = "slerp(x_1, x_2, t) with t = w_2 / (w_1 + w_2); of task vectors if there is a base"
    source = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    params = {
        "weight": Param(float, REQUIRED, "pull towards this model", per_model=True),
        "nuslerp_flatten": Param(bool, True, "take each tensor as one vector"),
        "nuslerp_row_wise": Param(
            bool, False, "if not flattened: along the first axis, not along the last (stored rows)"
        ),
    }
    example = """
merge_method: nuslerp
models:
  - model: expert_a
    parameters: {weight: 0.7}
  - model: expert_b
    parameters: {weight: 0.3}
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def access(self, p: Settings) -> Access:
        if p.nuslerp_flatten:
            return Access.FLAT
        return Access.WHOLE if p.nuslerp_row_wise else Access.ROWS

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(_vectors(x)) if s.nuslerp_flatten else {}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        t = 0.5 if cancel(p.weight) else p.weight[1] / sum(p.weight)
        if not p.nuslerp_flatten:
            return {"t": t}
        cos = cosine(gram_matrix(totals), 0, 1)
        return {"share": [1.0 - t, t] if straight(cos) else list(arc(cos, t))}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        vectors = _vectors(x)
        if s.nuslerp_flatten:
            out = combination(vectors, s.share)
        else:
            first = s.nuslerp_row_wise or vectors[0].dim() == 0
            out = _arc_along(vectors[0], vectors[1], s.t, 0 if first else -1)
        return out if x.base is None else x.base + out
