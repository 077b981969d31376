"""STAR: each task vector's strongest directions, at its full nuclear norm, averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import svd, svd_room
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class Star(MatrixMethod):
    """Weak directions are dropped and the others made up for it, as rescaling does for elements."""

    name = "star"
    summary = "task vectors cut to their top singular values, rescaled, averaged"
    advice = (
        "To drop the weak, noisy directions of each task vector, with little to choose. For "
        "LoRA experts, whose rank is low already, it changes little."
    )
    formula = (
        "d_i = U S V^T; r the least with sum(S[:r]) >= eta sum(S); "
        "d'_i = sum(S) / sum(S[:r]) U[:r] S[:r] V[:r]^T; b + lambda / N sum_i w_i d'_i"
    )
    source = "STAR (Lee et al. 2025, arXiv 2502.10339)"
    variant = "paper, and the authors' code; `eta` is a share here and a percentage there"
    params = matrix_params("matrices", "mean") | {
        "eta": Param(float, 0.4, "share of the nuclear norm to keep", ge=0, le=1, native=True)
    }
    example = """
merge_method: star
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return outputs * inputs * (experts > 1) + svd_room(outputs, inputs)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        return total(truncated(delta, s.eta) for delta in deltas) / len(deltas)


def truncated(delta: Tensor, eta: float) -> Tensor:
    """The strongest directions that hold `eta` of the nuclear norm, scaled to all of it."""
    found = svd(delta)
    if not len(found.s):
        return delta.double()
    whole = found.s.sum()
    rank = int(torch.searchsorted(found.s.cumsum(0), whole * eta)) + 1
    kept = found.top(rank)
    return kept.whole().mul_(whole / kept.s.sum())
