"""WUDI: the task vector that disturbs the experts' layers least, by a few hundred steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._descent import MOST_STEPS
from mergewise.methods._interference import START, Interference
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Wudi(MatrixMethod):
    """Each task vector's rows stand for the inputs it was trained on; no data are needed.

    The early stop is what makes it work: the loss's minimum is a worse merge. The learning rate
    is absolute, so the result depends on how large the task vectors are. `aswudi` gives much the
    same without iterating.
    """

    name = "wudi"
    summary = "moves the sum of task vectors, by Adam, to where it disturbs each of them least"
    advice = (
        "For experts without data, when a few hundred steps of Adam on each matrix are "
        "affordable; swudi and aswudi solve much the same in closed form. It starts from the sum "
        "of all task vectors: with the lab's five to eight experts lambda 0.2 to 0.7 was best, "
        "and at 1 two of three merges were worse than the base."
    )
    formula = (
        "b + lambda M, M from sum_i w_i d_i by 300 steps of Adam on "
        "sum_i |(M - d_i) d_i^T|^2 / |d_i|^2"
    )
    source = "WUDI-Merging (Cheng et al. 2025, arXiv 2503.08099)"
    variant = (
        "paper: linear weights alone, the rest as the base; FusionBench takes all matrices, the "
        "mean of the rest, and 400 steps"
    )
    params = matrix_params("linear", "base") | {
        "iterations": Param(int, 300, "steps of Adam", ge=0, le=MOST_STEPS, native=True),
        "learning_rate": Param(float, 1e-5, "of Adam", gt=0, native=True),
        "start": START,
    }
    example = """
merge_method: wudi
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return Interference.room(outputs, inputs, experts * outputs, descends=True)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        problem = Interference.of(deltas, s.start)
        return problem.descended("adam", s.iterations, s.learning_rate)
