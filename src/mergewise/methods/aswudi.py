"""ASWUDI: WUDI's loss minimised on as many directions as its spectrum counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._interference import (
    RANK_RULE,
    START,
    Interference,
    counted,
    first,
)
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Aswudi(MatrixMethod):
    """No step size and no number of steps: how many directions count is read off the spectrum.

    As for `swudi`, the eigenvectors come from the smaller Gram matrix, which is exact.
    """

    name = "aswudi"
    summary = "least disturbance of the task vectors in closed form, nothing to be tuned"
    advice = (
        "The aim of wudi in closed form with nothing to choose. It solves a system the size "
        "of each matrix's inputs, and rests on a recent preprint."
    )
    formula = (
        "as swudi, with f = 1 on the K largest of the eigenvalues l and 0 elsewhere, "
        "K = ceil((sum sqrt(l))^2 / sum l)"
    )
    source = "ASWUDI (2026, arXiv 2606.07289)"
    variant = (
        "paper; the authors' Gavish-Donoho rule for full language models is not among the rules"
    )
    params = matrix_params("linear", "mean") | {"rank_rule": RANK_RULE, "start": START}
    example = """
merge_method: aswudi
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return Interference.room(outputs, inputs, experts * outputs, descends=False)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        problem = Interference.of(deltas, s.start)
        values, vectors = problem.spectrum()
        count = counted(values, deltas[0].shape[1], s.rank_rule)
        return problem.minimised(values, vectors, first(values, count))
