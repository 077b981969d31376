"""Subspace Boosting: the merged task vector's weak directions are raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._matrix import NULL, MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import full_svd, svd, svd_room
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class SubspaceBoosting(MatrixMethod):
    """No singular value of the sum is left below the one at which `beta` of their sum is reached.

    The paper puts it on top of any merge by task vectors: give the result of an earlier stage as
    the only model, and it is that result that is boosted.

    Directions in which the sum is zero stay zero; the authors' code raises arbitrary ones as well
    (`null: fill`).
    """

    name = "subspace_boosting"
    summary = "the sum of task vectors, or another merge, with its weak directions raised"
    advice = (
        "For many experts, or after another merge, when the result has collapsed to a few "
        "directions. It starts from the sum of all task vectors and raises weak directions "
        "whatever they hold: lower lambda first. With the lab's five to eight experts 0.1 to 0.3 "
        "was best, and lambda 1 gave less than the base."
    )
    formula = (
        "sum_i w_i d_i = U S V^T; j the first with sum(S[:j]) >= beta sum(S); "
        "b + lambda U max(S, S_j) V^T"
    )
    source = "Subspace Boosting (Skorobogat et al. 2025, arXiv 2506.16506)"
    variant = (
        "cumulative share of singular values, beta 0.01 (the code's; 0.2 for language models); "
        "directions of rounding are not raised, unless `null: fill`. The authors' code also treats "
        "packed query, key and value weights one by one, which is not done here"
    )
    params = matrix_params("matrices", "sum") | {
        "beta": Param(
            float, 0.01, "share of the singular values' sum whose last value is the least of all",
            ge=0, le=1, native=True,
        ),
        "null": NULL,
    }  # fmt: skip
    example = """
merge_method: subspace_boosting
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {lambda: 0.5}
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return outputs * inputs * (experts > 1) / 2 + svd_room(outputs, inputs, p.null == "fill")

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        merged = total(deltas)
        found = full_svd(merged) if s.null == "fill" else svd(merged, least=s.rounding)
        if not len(found.s):
            return merged
        reached = torch.searchsorted(found.s.cumsum(0), found.s.sum() * s.beta)
        least = found.s[min(int(reached), len(found.s) - 1)]
        return found.whole(found.s.clamp(min=float(least)))
