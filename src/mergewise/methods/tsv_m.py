"""TSV-M: task singular vectors, decorrelated and put side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Settings
from mergewise.methods._spectrum import decorrelated, svd

if TYPE_CHECKING:
    from torch import Tensor


def task_spaces(deltas: list[Tensor]) -> Tensor:
    """TSV-M of matrices: the top of each, an equal share of the rank, decorrelated."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    return decorrelated([svd(delta, rank) for delta in deltas])


class TsvM(MatrixMethod):
    """Each task gets an equal share of the rank; the tasks' bases are made orthonormal together.

    With more experts than the smaller side, each gets rank 1.
    """

    name = "tsv_m"
    summary = "the top singular vectors of each task vector, decorrelated, side by side"
    advice = (
        "For several experts of full fine-tuning, each given an equal share of the rank. It "
        "takes a decomposition of every matrix of every expert; with one expert it changes "
        "nothing."
    )
    experts = (1, None)
    formula = (
        "k = min(m, n) // experts; U = [U_1[:k] ...], S, V likewise; "
        "b + lambda polar(U) diag(S) polar(V)^T"
    )
    source = "Task Singular Vectors (Gargiulo et al. 2025, arXiv 2412.00081)"
    variant = (
        "paper; columns that the authors' code leaves zero where the rank does not divide by the "
        "experts are left out here"
    )
    params = matrix_params("matrices", "mean")
    example = """
merge_method: tsv_m
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        return task_spaces(deltas)
