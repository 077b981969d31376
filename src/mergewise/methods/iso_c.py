"""Iso-C: the summed task vector with all its singular values made equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._matrix import NULL, MatrixMethod, matrix_params
from mergewise.methods._params import Settings
from mergewise.methods._spectrum import isotropic, svd_room
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class IsoC(MatrixMethod):
    """The sum's directions, each as strong as they are on average.

    Directions in which the sum is zero (of LoRA experts, say) have no singular vectors of their
    own; the authors' code gives arbitrary ones the mean as well (`null: fill`).
    """

    name = "iso_c"
    summary = "the sum of task vectors with its singular values made equal"
    advice = (
        "For many experts whose sum is ruled by a few strong directions. All directions get "
        "the same strength, the noise among them too; lambda is best chosen on held-out data."
    )
    formula = "sum_i w_i d_i = U S V^T; b + lambda mean(S) U V^T, the mean over min(m, n)"
    source = "Isotropic model merging (Marczak et al. 2025, arXiv 2502.04959)"
    variant = "paper; singular values that are rounding are not raised, unless `null: fill`"
    params = matrix_params("matrices", "mean") | {"null": NULL}
    example = """
merge_method: iso_c
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return outputs * inputs * (experts > 1) / 2 + svd_room(outputs, inputs, p.null == "fill")

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        return isotropic(total(deltas), s.null == "fill", s.rounding)
