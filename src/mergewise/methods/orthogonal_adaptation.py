"""Orthogonal adaptation: the plain sum of task vectors that were trained to be orthogonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


class OrthogonalAdaptation(Method):
    """LoRAs whose down projections are frozen and orthogonal to each other add up undisturbed.

    The sum is all there is to merging; what makes it good is the training. How far adapters are
    from orthogonal, `mergewise lora overlap` says. For others it is task arithmetic. The paper
    derives it with `lambda: 1`, and merges at 0.6 in all of its experiments.
    """

    name = "orthogonal_adaptation"
    summary = "the sum of task vectors trained in orthogonal subspaces"
    advice = (
        "For LoRAs that were trained in orthogonal subspaces, whose sum disturbs none. For any "
        "others it is plain task arithmetic: with the lab's five to eight experts lambda 0.2 to "
        "0.3 was best, and lambda 1 gave less than the base."
    )
    family = "subspaces"
    formula = "b + lambda sum_i w_i d_i"
    source = "Orthogonal Adaptation (Po et al. 2023, arXiv 2312.02432)"
    variant = "paper, with the factor of its experiments; its derivation has 1"
    params = {
        "weight": Param(float, 1.0, "factor on this model's task vector", per_model=True),
        "lambda": Param(float, 0.6, "factor on the merged task vector"),
    }
    example = """
merge_method: orthogonal_adaptation
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def summed(self, p: Settings) -> list[float] | None:
        return [weight * p.lambda_ for weight in p.weight]

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        return x.base + combination(x.deltas, s.weight) * s.lambda_
