"""KnOTS: task vectors in the coordinates of their common left singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs
from mergewise.methods._matrix import (
    MatrixMethod,
    as_matrices,
    as_stored,
    inside,
    matrix_params,
)
from mergewise.methods._params import Param, Settings
from mergewise.methods._rotated import threshold, ties, ties_room
from mergewise.methods._select import kept_count
from mergewise.methods._spectrum import joint_room, joint_vectors
from mergewise.methods._weights import combination, total

if TYPE_CHECKING:
    from torch import Tensor


class Knots(MatrixMethod):
    """Elements are compared where they mean the same: ``[d_1 ... d_N] = U S [V_1 ... V_N]``.

    TIES then trims and elects among the ``S V_i = U^T d_i``, so that the matrices are never put
    side by side: U comes from the sum of the ``d_i d_i^T``. Directions with a singular value up
    to `epsilon` are left out; of LoRA experts few remain, and a share `density` of their elements
    is kept.

    With ``granularity: model`` one threshold holds for all weights, as in the authors' code. Then
    U is found again in each of the passes that look for it, about four in all.
    """

    name = "knots"
    summary = "ties in the coordinates of the task vectors' common singular vectors"
    advice = (
        "For LoRA experts, whose changes are easier to compare in common coordinates. All "
        "task vectors of a matrix are decomposed together, so memory grows with their number."
    )
    formula = "[d_1 ... d_N] = U S V^T; c_i = U^T d_i; b + lambda U ties(c_1 ... c_N)"
    source = "KnOTS (Stoica et al. 2024, arXiv 2410.19735)"
    variant = (
        "KnOTS-TIES with a disjoint mean. The authors' code trims over the whole model "
        "(`granularity: model`), keeps one element more than the share, and tunes lambda, 0.5 to "
        "0.6 for eight models; other weights stay as in the base, as there"
    )
    counts_nonzero = True
    params = matrix_params("matrices", "base") | {
        "rule": Param(
            str, "ties", "how they are merged: TIES; or the weighted sum or mean, for which the "
            "coordinates do not matter", choices=("ties", "sum", "mean"), native=True,
        ),
        "density": Param(
            float, 0.2, "share of elements to keep, of each model", per_model=True, ge=0, le=1,
            native=True,
        ),
        "granularity": Param(
            str, "tensor", "over what the elements are ranked: each matrix, or the whole model",
            choices=("tensor", "model"), native=True,
        ),
        "shared": Param(
            str, "outputs", "which singular vectors the experts share: matrices lie side by side, "
            "or on top of each other", choices=("outputs", "inputs"), native=True,
        ),
        "epsilon": Param(
            float, 1e-5, "singular values up to this are left out (absolute)", ge=0, native=True
        ),
    }  # fmt: skip
    weighted = False
    example = """
merge_method: knots
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def turns(self, p: Settings) -> tuple[bool, bool]:
        return p.shared == "outputs", p.shared == "inputs"

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        if not inside(s) or s.granularity != "model":
            return []
        stack = [as_matrices(delta, s) for delta in x.deltas]
        each = [_coordinates(list(matrices), s) for matrices in zip(*stack, strict=True)]
        shape = x.experts[0].shape
        if not each:
            return [torch.zeros_like(expert) for expert in x.experts]
        scores = [[_padded(c, stack[0][0], s) for c in same] for _, same in each]
        experts = zip(*scores, strict=True)
        return [as_stored(torch.stack(own), shape, s).to(x.experts[0].dtype) for own in experts]

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        if not inside(p) or p.granularity != "model":
            return []
        return [[kept_count(d, k) if k else 0] for d, k in zip(p.density, nonzero, strict=True)]

    def normalized(self, p: Settings) -> str:
        return "rule" if p.rule == "ties" and inside(p) else ""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        rows, columns = outputs, inputs
        if p.shared == "inputs":
            rows, columns = inputs, outputs
        rank = min(rows, experts * columns)
        merging = max(ties_room(rank * columns, experts), 2.0 * rows * columns)
        held = rank * rows + experts * rank * columns
        return max(joint_room(rows, columns, experts), held + merging)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        basis, parts = _coordinates(deltas, s)
        merged = basis @ _by_rule(parts, s)
        return merged if s.shared == "outputs" else merged.mT


def _coordinates(deltas: list[Tensor], s: Settings) -> tuple[Tensor, list[Tensor]]:
    """The common vectors [rows, r], and each task vector in them [r, columns]."""
    seen = deltas if s.shared == "outputs" else [delta.mT for delta in deltas]
    vectors, _ = joint_vectors(seen)
    turned = [vectors.mT @ delta.double() for delta in seen]
    # the rows' lengths are the singular values, without the loss of digits of squares
    kept = total((t * t).sum(1) for t in turned).sqrt() > s.epsilon
    if bool(kept.all()):
        return vectors, turned
    return vectors[:, kept], [t[kept] for t in turned]


def _padded(values: Tensor, like: Tensor, s: Settings) -> Tensor:
    """Magnitudes in the shape of the task vector, with zeros for directions left out."""
    outputs, inputs = like.shape if s.shared == "outputs" else like.mT.shape
    out = torch.zeros(outputs, inputs, dtype=values.dtype, device=values.device)
    out[: len(values)] = values.abs()
    return out if s.shared == "outputs" else out.mT


def _by_rule(parts: list[Tensor], s: Settings) -> Tensor:
    if s.rule != "ties":
        share = 1.0 if s.rule == "sum" else 1.0 / len(parts)
        return combination(parts, [weight * share for weight in s.weight])
    if s.granularity == "model":
        # thresholds are picked among float32 scores
        least = [float(thresholds[0].value) for thresholds in s.thresholds]
        return ties(parts, least, s.weight, rounded=True)
    return ties(parts, [threshold(p, d) for p, d in zip(parts, s.density, strict=True)], s.weight)
