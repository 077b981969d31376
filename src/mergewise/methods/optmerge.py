"""OptMerge: WUDI on task vectors with their small singular values cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._descent import MOST_STEPS
from mergewise.methods._interference import (
    RANK_RULE,
    START,
    Interference,
    counted,
    first,
    started,
)
from mergewise.methods._matrix import MatrixMethod, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import Spectrum, svd, svd_room
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

_RATES = {"sgd": 1e-4, "adam": 1e-5}


class OptMerge(MatrixMethod):
    """What disturbs is measured on each task vector's top directions, k = min(m, n) // experts.

    The paper has two settings. For LoRA experts, ``solver: sgd``, from the mean. For full
    fine-tuning, ``solver: adam``, ``target: centred``, ``start: sum``, ``lambda: 0.1``. By
    default the minimum is taken in closed form on the directions that the spectrum counts, as the
    authors do since (ASWUDI). With more experts than the smaller side, each gets rank 1.
    """

    name = "optmerge"
    summary = "least disturbance of the task vectors' top directions, from their mean"
    advice = (
        "As aswudi, with task vectors cut to their top directions and their mean as the start. "
        "It solves a system the size of each matrix's inputs, or takes steps if asked to."
    )
    formula = (
        "S_i V_i^T, T_i: top k of d_i; b + lambda M, M from mean_i w_i d_i by descent on (or at "
        "the minimum of) sum_i |(M - T_i) (S_i V_i^T)^T|^2 / |d_i|^2"
    )
    source = "OptMerge (Wei et al. 2025, arXiv 2505.19892); arXiv 2606.07289 for the closed form"
    variant = "LoRA setting of the authors' code, solved in closed form unless `solver` says else"
    params = matrix_params("linear", "base") | {
        "solver": Param(
            str, "closed", "the minimum, or steps of SGD with momentum 0.9 or of Adam",
            choices=("closed", "sgd", "adam"), native=True,
        ),
        "target": Param(
            str, "low_rank", "T_i: the task vector cut to rank k, or cut about the experts' mean",
            choices=("low_rank", "centred"), native=True,
        ),
        "iterations": Param(
            int, 300, "steps, unless solver: closed", ge=0, le=MOST_STEPS, native=True
        ),
        "learning_rate": Param(
            float, None, "of the steps; by default 1e-4 for sgd and 1e-5 for adam", gt=0,
            native=True,
        ),
        "rank_rule": RANK_RULE,
        "start": Param(str, "mean", START.help, choices=START.choices, native=True),
    }  # fmt: skip
    example = """
merge_method: optmerge
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size, rank = outputs * inputs, min(outputs, inputs)
        descends = p.solver != "closed"
        # the start, the loss, and the top directions
        held = 2.5 * size + rank * inputs + rank**2
        building = 4.0 * size
        if p.target == "centred":
            building = max(5.0 * size, 2.0 * size + svd_room(outputs, inputs))
        return max(held + building, Interference.room(outputs, inputs, rank, descends))

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        problem = _problem(deltas, s)
        if s.solver != "closed":
            rate = s.learning_rate or _RATES[s.solver]
            return problem.descended(s.solver, s.iterations, rate)
        values, vectors = problem.spectrum()
        count = counted(values, deltas[0].shape[1], s.rank_rule)
        return problem.minimised(values, vectors, first(values, count))


def _problem(deltas: list[Tensor], s: Settings) -> Interference:
    rank = max(1, min(deltas[0].shape) // len(deltas))
    tops = [svd(delta, rank) for delta in deltas]
    rows = sum(len(top.s) for top in tops)
    mean = total(deltas).double() / len(deltas) if s.target == "centred" else None
    parts = (
        (_target(delta, top, mean, rank), (top.s[:, None] * top.vh).div_(delta.double().norm()))
        for delta, top in zip(deltas, tops, strict=True)
        if len(top.s)
    )
    return Interference(started(deltas, s.start), parts, rows)


def _target(delta: Tensor, top: Spectrum, mean: Tensor | None, rank: int) -> Tensor:
    return top.whole() if mean is None else svd(delta - mean, rank).whole() + mean
