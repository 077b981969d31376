"""CART: task vectors from the experts' average, cut to their strongest directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import svd, svd_room
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class Cart(MatrixMethod):
    """The average, plus what is strongest in each expert's difference from it.

    At full rank the differences cancel and the average is left. The base does not matter to
    weights that the method is for.
    """

    name = "cart"
    summary = "the average, plus each expert's strongest directions away from it"
    advice = (
        "When the average is a fair start and each expert's strongest directions are to be "
        "put back. It differs from the average by its scale and rank alone, which want "
        "choosing."
    )
    formula = (
        "a = sum_i w_i d_i / N; b + a + lambda sum_i svd_k(w_i d_i - a), k = ceil(rank min(m, n))"
    )
    source = "Revisiting Weight Averaging (CART; Choi et al. 2024, arXiv 2412.12153)"
    variant = (
        "paper, which tunes lambda on validation data; k is rounded up as in the code of Core "
        "Space (arXiv 2509.17786), whose rank for LoRA is 0.04; the authors' code was not at hand"
    )
    params = matrix_params("matrices", "mean") | {
        "rank": Param(
            float,
            0.08,
            "share of the rank that is kept of each difference",
            ge=0,
            le=1,
            native=True,
        )
    }
    example = """
merge_method: cart
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def factor(self, s: Settings) -> Any:
        return 1.0

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return outputs * inputs * (1 + (experts > 1)) + svd_room(outputs, inputs)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        mean = total(deltas).double() / len(deltas)
        rank = math.ceil(s.rank * min(mean.shape))
        tops = total(svd(delta - mean, rank).whole() for delta in deltas)
        return mean + tops.mul_(s.lambda_)
