"""Iso-CTS: directions that tasks share, and some of each task's own, all equally strong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._matrix import NULL, MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import (
    NOTHING,
    Spectrum,
    decorrelated_room,
    full_svd,
    polar,
    svd,
)
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class IsoCts(MatrixMethod):
    """The sum's weakest directions make room for the strongest of what it lacks of each task.

    Of the rank r, k directions are the sum's and p are each task's own, outside of the space of
    the sum's left vectors: p = round((r - int(r * common_space_fraction)) / experts), halves to
    the even number as Python rounds, k = r - p * experts. With p = 0 it is Iso-C.

    Directions that neither the sum nor a task has (of LoRA experts, say) stay zero; the authors'
    code fills them with arbitrary ones (`null: fill`).
    """

    name = "iso_cts"
    summary = "iso_c with its weakest directions replaced by each task's own"
    advice = (
        "As iso_c for many experts, with room for what each task has of its own. It takes "
        "more decompositions than iso_c, and the shared part has to be chosen."
    )
    formula = (
        "C, c = first k left and right vectors of sum_i w_i d_i; U_i, V_i = first p of "
        "w_i d_i - C C^T w_i d_i; U = [U_1 ... C], V = [V_1 ... c], S likewise; "
        "b + lambda mean(S) polar(U) polar(V)^T"
    )
    source = "Isotropic model merging (Marczak et al. 2025, arXiv 2502.04959)"
    variant = "paper; directions of rounding are not raised, unless `null: fill`"
    params = matrix_params("matrices", "mean") | {
        "common_space_fraction": Param(
            float, 0.8, "share of the rank that is the sum's", ge=0, le=1, native=True
        ),
        "null": NULL,
    }
    example = """
merge_method: iso_cts
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        return decorrelated_room(outputs, inputs, p.null == "fill")

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        rank, fill = min(deltas[0].shape), s.null == "fill"
        own = own_rank(rank, len(deltas), s.common_space_fraction)
        common = _first(total(deltas), rank - own * len(deltas), fill, s.rounding)
        errors = s.rounding + NOTHING * max(float(delta.double().norm()) for delta in deltas)
        found = [_lacking(delta, common, own, fill, (s.rounding, errors)) for delta in deltas]
        parts = [*(part for part, _ in found), common]
        doubts = [*(doubt for _, doubt in found), s.rounding / common.s]
        turned = None if fill else torch.cat(doubts)
        u = polar(torch.cat([part.u for part in parts], 1), fill, turned)
        v = polar(torch.cat([part.vh for part in parts], 0).mT, fill, turned)
        return (u @ v.mT).mul_(sum(part.s.sum() for part in parts) / rank)


def _lacking(
    delta: Tensor, common: Spectrum, rank: int, fill: bool, errors: tuple[float, float]
) -> tuple[Spectrum, Tensor]:
    """The strongest of what a space of left vectors lacks of a task vector, and its doubts.

    Errors turn each vector of the space by their share of its singular value, and what the task
    vector has along it sticks out by as much.

    Args:
        errors: of the sum that the space is of, and of what is found.
    """
    outside = delta.to(torch.float64, copy=True)
    along = common.u.mT @ outside
    outside.addmm_(common.u, along, alpha=-1)
    least = errors[0] * float(along.div_(common.s[:, None]).norm()) + errors[1]
    del along
    part = _first(outside, rank, fill, least)
    return part, least / part.s


def own_rank(rank: int, experts: int, fraction: float) -> int:
    """How many directions of its own each task gets."""
    return min(round((rank - int(rank * fraction)) / experts), rank // experts)


def _first(matrix: Tensor, rank: int, fill: bool, least: float) -> Spectrum:
    return full_svd(matrix, rank) if fill else svd(matrix, rank, least)
