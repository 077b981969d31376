"""TSV-M: task singular vectors, decorrelated and put side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import decorrelated, decorrelated_room, full_svd, svd

if TYPE_CHECKING:
    from torch import Tensor


_NULL = Param(
    str,
    "skip",
    "directions in which a task vector is zero, where its rank is less than its share: left out, "
    "or made orthonormal with all others, which turns those a little (code)",
    choices=("skip", "fill"),
    native=True,
)


def task_spaces(deltas: list[Tensor], fill: bool = False, least: float = 0.0) -> Tensor:
    """TSV-M of matrices: the top of each, an equal share of the rank, decorrelated."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    if fill:
        return decorrelated([full_svd(delta, rank) for delta in deltas])
    return decorrelated([svd(delta, rank, least) for delta in deltas], least)


class TsvM(MatrixMethod):
    """Each task gets an equal share of the rank; the tasks' bases are made orthonormal together.

    With more experts than the smaller side, each gets rank 1.
    """

    name = "tsv_m"
    summary = "the top singular vectors of each task vector, decorrelated, side by side"
    advice = (
        "For several experts of full fine-tuning, each given an equal share of the rank. It "
        "takes a decomposition of every matrix of every expert; of one expert alone it makes that "
        "expert."
    )
    experts = (1, None)
    formula = (
        "w_i d_i = U_i S_i V_i^T; k = min(m, n) // N; U = [U_1[:k] ... U_N[:k]], S, V likewise; "
        "b + lambda polar(U) diag(S) polar(V)^T"
    )
    source = "Task Singular Vectors (Gargiulo et al. 2025, arXiv 2412.00081)"
    variant = (
        "paper; columns that the authors' code leaves zero where the rank does not divide by the "
        "experts are left out here, and of experts of low rank (LoRA) vectors without a singular "
        "value, unless `null: fill`. R-TSVM (arXiv 2502.06876) adds weights from outliers and "
        "ranks from sparsity, which could not be verified and are not built"
    )
    params = matrix_params("matrices", "mean") | {"null": _NULL}
    example = """
merge_method: tsv_m
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return decorrelated_room(outputs, inputs, p.null == "fill")

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        return task_spaces(deltas, s.null == "fill", s.rounding)
