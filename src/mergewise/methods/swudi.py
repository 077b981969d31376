"""SWUDI: WUDI's loss in closed form, with the early stop as a filter on its spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._interference import FLOOR, START, Interference, first
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Swudi(MatrixMethod):
    """Along each eigenvector of the curvature, gradient descent gets 1 - exp(-time l) of the way.

    Eigenvectors beyond the first `rank_ratio` of the inputs are not followed at all. Where the
    experts together have fewer rows than the layer has inputs, the eigenvectors come from the
    smaller Gram matrix, which is exact.
    """

    name = "swudi"
    summary = "least disturbance of the task vectors in closed form, its spectrum filtered"
    advice = (
        "The aim of wudi in closed form, with a filter whose strength is to be chosen. It "
        "solves a system the size of each matrix's inputs."
    )
    formula = (
        "C = sum_i d_i^T d_i / |d_i|^2 = V l V^T; f = 1 - exp(-time l) on the largest l, else 0; "
        "b + lambda (D0 (I - V f V^T) + sum_i d_i d_i^T d_i / |d_i|^2 V (f / l) V^T), "
        "D0 = sum_i w_i d_i"
    )
    source = "SWUDI (2026, arXiv 2606.07289)"
    variant = (
        "authors' code for CLIP: time 1300, rank_ratio 0.65; for language models time 300 and "
        "0.85, and for several LoRAs lambda 0.1 to 0.2"
    )
    params = matrix_params("linear", "mean") | {
        "time": Param(float, 1300.0, "how long descent would have gone on", ge=0, native=True),
        "rank_ratio": Param(
            float, 0.65, "share of the inputs' directions that are used", gt=0, le=1, native=True
        ),
        "start": START,
    }
    example = """
merge_method: swudi
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
        kept = first(values, math.ceil(deltas[0].shape[1] * s.rank_ratio - 1e-9))
        factors = -torch.expm1(-s.time * values.clamp(min=FLOOR))
        return problem.minimised(values, vectors, factors * kept)
