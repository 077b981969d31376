"""SVC: singular values of a merge, calibrated where tasks share directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import svd, svd_room
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


class Svc(MatrixMethod):
    """A direction in which the merge goes further than the tasks do is shortened.

    Along each left singular vector of the merge, its response is measured by each task's; over-
    counting is a factor above 1. What is calibrated is the weighted sum, or (`calibrate: last`)
    the last model, a merge of the others such as an earlier stage. `lambda` applies after it.
    """

    name = "svc"
    summary = "a merge's singular values, lessened where tasks share directions"
    advice = (
        "After any merge of experts that share directions, to undo what is counted more than "
        "once; wrong directions stay wrong. It starts from the sum of all task vectors: lambda "
        "0.7 to 1 was best for the lab's image experts, but 0.2 for its five language experts, "
        "whose merge at 1 was far worse than the base."
    )
    formula = (
        "D = sum_i w_i d_i, or the last model's; D = U S V^T; "
        "s_ri = <u_r^T D, u_r^T d_i> / |u_r^T d_i|^2; g_r = N / sum_i max(alpha, s_ri); "
        "b + lambda U diag(g S) V^T"
    )
    source = "Singular Value Calibration (Li et al. 2026, arXiv 2602.05536)"
    variant = (
        "paper; alpha is 1 by default in the authors' code, whose script sets 1 / experts for all "
        "methods but TSV-M"
    )
    symmetric = True
    params = matrix_params("matrices", "sum") | {
        "alpha": Param(
            float, 1.0, "least factor of a task's response; below 1, weak directions are raised",
            gt=0, native=True,
        ),
        "calibrate": Param(
            str, "sum", "what is calibrated: the weighted sum, or the last model, a merge of the "
            "others", choices=("sum", "last"), native=True,
        ),
    }  # fmt: skip
    weighted = False
    example = """
merge_method: svc
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def problem(self, p: Settings, experts: int) -> str | None:
        if p.calibrate == "last" and experts < 2:
            return "calibrate: last needs the models that were merged, before the merge; give two"
        return None

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size, side = outputs * inputs, min(outputs, inputs)
        responses = 2.0 * size + side**2 + 2.0 * side * inputs
        return size / 2 + max(svd_room(outputs, inputs), responses)

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        merged, tasks = combination(deltas, s.weight), deltas
        if s.calibrate == "last":
            merged, tasks = deltas[-1] * s.weight[-1], deltas[:-1]
        found = svd(merged)
        whole = found.s[:, None] * found.vh
        parts = [_response(whole, found.u.mT @ task.double(), s.alpha) for task in tasks]
        factor = len(parts) / torch.stack(parts).sum(0)
        return found.whole(found.s * factor)


def _response(merged: Tensor, own: Tensor, alpha: float) -> Tensor:
    """How far the merge goes along a task's response, for each direction; at least alpha."""
    length = (own * own).sum(1)
    shared = (merged * own).sum(1) / torch.where(length == 0, 1.0, length)
    return shared.clamp(min=alpha)
