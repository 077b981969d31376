"""Add of each expert only what is perpendicular to the experts before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._gram import BLUR, Gram, gram_matrix, gram_terms, inner, length, norms
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


def perpendicular(gram: Gram) -> list[list[float]]:
    """Each vector without its projections on those before it (Gram-Schmidt), as coefficients.

    What remains of a vector that lies among the others is rounding, and nothing is projected on it.
    """
    sizes = norms(gram)
    found: list[list[float]] = []
    axes: list[list[float]] = []
    for i, size in enumerate(sizes):
        own = [float(j == i) for j in range(len(sizes))]
        for axis in axes:
            share = inner(gram, axis, own) / inner(gram, axis, axis)
            own = [o - share * a for o, a in zip(own, axis, strict=True)]
        found.append(own)
        if length(gram, own) > BLUR * size:
            axes.append(own)
    return found


def _summed(parts: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    return [
        sum(weight * part[j] for weight, part in zip(weights, parts, strict=True))
        for j in range(len(weights))
    ]


class AddPerpendicular(Method):
    """The first expert is kept; of the others only what it does not already say is added.

    With two experts it is the diffusion tools' "add perpendicular". Of more, each is made
    perpendicular to all before it, in the recipe's order.
    """

    name = "add_perpendicular"
    summary = "adds of each task vector only what is perpendicular to those before it"
    advice = (
        "To add a second task vector without repeating what the first has done; the order of the "
        "models matters. Task vectors of high dimension are nearly perpendicular, so it is close "
        "to their sum: of the lab's five to eight experts, at weight 1, less than the base came "
        "of it."
    )
    family = "arithmetic"
    experts = (2, None)
    formula = "b + sum_i w_i p_i, p_i = d_i - sum_{j<i} (d_i.p_j / p_j.p_j) p_j"
    source = "sd-mecha (ljleb), perpendicular_component; Gram-Schmidt for more than two"
    variant = "sd-mecha 1.1.5 for two experts at weights 1, alpha; the order of more is ours"
    symmetric = False
    params = {
        "weight": Param(float, 1.0, "factor on what this expert adds", per_model=True, native=True),
    }
    example = """
merge_method: add_perpendicular
base_model: base
models:
  - model: expert_a
  - model: expert_b
    parameters: {weight: 0.5}
"""

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return gram_terms(x.deltas)

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"share": _summed(perpendicular(gram_matrix(totals)), p.weight)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        return x.base + combination(x.deltas, s.share)
