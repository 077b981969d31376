"""Task arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from mergewise.methods._delta import DeltaMethod, delta_params, shared_out
from mergewise.methods._params import Param, Settings


class TaskArithmetic(DeltaMethod):
    """The sum of task vectors; a negative weight forgets a task.

    `factors: true` gives rows and columns of tensors factors of their own, from evidence files.
    `density` and `rescale` are accepted, as mergekit does, and have no effect.
    """

    name = "task_arithmetic"
    summary = "adds weighted task vectors (expert − base) to the base"
    advice = (
        "The baseline for experts of different tasks, and the way to subtract one (a negative "
        "weight). How well it does depends on lambda, best chosen on held-out data: at 1, the "
        "default, whole task vectors are added up, while for the lab's five to eight experts 0.2 "
        "to 0.5 was best."
    )
    formula = "b + lambda sum_i w_i d_i   (over sum_i w_i if normalize)"
    source = "Editing Models with Task Arithmetic (Ilharco et al. 2022, arXiv 2212.04089)"
    params = delta_params(normalize=False, rescale=False) | {
        "density": Param(
            float, 1.0, "accepted for mergekit recipes; has no effect", per_model=True, ge=0, le=1
        ),
        "rescale": Param(bool, False, "accepted for mergekit recipes; has no effect"),
    }
    example = """
merge_method: task_arithmetic
base_model: base
models:
  - model: expert_a
    parameters: {weight: 0.6}
  - model: expert_b
    parameters: {weight: 0.4}
"""

    def summed(self, p: Settings) -> list[float] | None:
        return [factor * p.lambda_ for factor in shared_out(p.weight, p)]
