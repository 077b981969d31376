"""Core Space: task vectors merged in the space that they span, which is small for LoRA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergewise.methods._matrix import MatrixMethod, inside, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._rotated import threshold, ties, ties_room
from mergewise.methods._spectrum import decorrelated_room, isotropic, joint_basis, joint_room
from mergewise.methods._weights import combination, total
from mergewise.methods.tsv_m import task_spaces

if TYPE_CHECKING:
    from torch import Tensor


class CoreSpace(MatrixMethod):
    """The task vectors' common column and row spaces hold all of them; a rule merges them there.

    Linear rules give what they give without it. Rules of singular vectors (`tsv`, `iso`,
    `tsv_iso`) see no directions but those that some task has: the rank shared out and the mean of
    singular values are the core's, and nothing outside is raised. Their results do not depend on
    the choice of the bases. That of `ties` does: here it is the singular vectors of the task
    vectors side by side, in the authors' code those of LoRA's factors.

    What adapters change is computed in float32, so spaces are cut at `tolerance`, well above that
    rounding. Experts stored in bfloat16 after merging an adapter have no small space left: give
    the adapter itself (``BASE+ADAPTER``).
    """

    name = "core_space"
    summary = "task vectors merged inside the small space that LoRA experts span"
    advice = (
        "For LoRA experts: the space they span together is small, so subspace rules are cheap "
        "in it. With a linear rule it gives the plain sum, and full fine-tuning leaves "
        "nothing to be saved."
    )
    formula = (
        "U, V = bases of the columns and rows of d_1 ... d_N; M_i = U^T d_i V; "
        "b + lambda U rule(M_1 ... M_N) V^T"
    )
    source = "Core Space Merging (Panariello et al. 2025, arXiv 2509.17786)"
    variant = (
        "bases from the task vectors, whose spaces are those of LoRA's factors; the best published "
        "rule by default. The paper tunes lambda"
    )
    params = matrix_params("matrices", "base") | {
        "rule": Param(
            str, "tsv_iso", "how they are merged: weighted sum or mean, TIES, TSV-M, Iso-C, or the "
            "result of TSV-M made isotropic",
            choices=("tsv_iso", "tsv", "iso", "ties", "sum", "mean"), native=True,
        ),
        "density": Param(
            float, 0.2, "with `rule: ties`: share of elements to keep, of each model",
            per_model=True, ge=0, le=1, native=True,
        ),
        "tolerance": Param(
            float, 1e-5, "directions are left out that are weaker than this share of the strongest",
            ge=0, lt=1, native=True,
        ),
    }  # fmt: skip
    weighted = False
    example = """
merge_method: core_space
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def turns(self, p: Settings) -> tuple[bool, bool]:
        return True, True

    def normalized(self, p: Settings) -> str:
        return "rule" if p.rule == "ties" and inside(p) else ""

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size = outputs * inputs
        rows, columns = min(outputs, experts * inputs), min(inputs, experts * outputs)
        left, right, core = outputs * rows, inputs * columns, rows * columns
        found = joint_room(outputs, inputs, experts), joint_room(inputs, outputs, experts)
        rule = ties_room(core, experts) if p.rule == "ties" else decorrelated_room(rows, columns)
        cores = experts * core + max(2.0 * size, rule)
        return max(found[0], left + max(found[1], right + cores))

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        left = joint_basis(deltas, s.tolerance, s.rounding)
        right = joint_basis([delta.mT for delta in deltas], s.tolerance, s.rounding)
        cores = [left.mT @ delta.double() @ right for delta in deltas]
        return left @ _by_rule(cores, s) @ right.mT


def _by_rule(cores: list[Tensor], s: Settings) -> Tensor:
    """What the rule makes of the cores, which are changed."""
    if s.rule == "ties":
        least = [threshold(core, d) for core, d in zip(cores, s.density, strict=True)]
        return ties(cores, least, s.weight)
    weighed = [core.mul_(weight) for core, weight in zip(cores, s.weight, strict=True)]
    if s.rule in ("sum", "mean"):
        return combination(weighed, [1.0 if s.rule == "sum" else 1.0 / len(cores)] * len(cores))
    # of the cores as they were, all together
    least = s.rounding * math.sqrt(sum(weight**2 for weight in s.weight) / len(cores))
    if s.rule == "iso":
        return isotropic(total(weighed), least=least)
    merged = task_spaces(weighed, least=least)
    return isotropic(merged) if s.rule == "tsv_iso" else merged
