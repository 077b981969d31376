"""Consensus merging: elements of the merged task vector that enough tasks have a use for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs
from mergewise.methods._delta import SIGN, DeltaMethod, delta_params, elect, factored
from mergewise.methods._params import Param, Settings
from mergewise.methods._select import Largest
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class Consensus(DeltaMethod):
    """TALL-masks say which elements a task uses; those that fewer than `least` use are dropped.

    Elements that no task uses are called catastrophic, those that one task alone uses selfish.
    With `merged: ties`, T is the sum of what TIES keeps of the trimmed experts; the masks hold each
    expert's whole task vector against it.
    """

    name = "consensus"
    summary = "drops elements of the merged task vector that fewer than two tasks have a use for"
    advice = (
        "For many experts, to drop what only one of them has a use for. What is dropped is "
        "just what that one expert alone knows."
    )
    formula = (
        "T = sum_i w_i d_i; m_i = [|w_i d_i| > tall_i |T - w_i d_i|]; "
        "b + lambda [sum_i m_i >= least] T"
    )
    source = "TALL-masks and Consensus (Wang et al. 2024, arXiv 2405.07813)"
    variant = "official code (strictly greater; the paper has >=)"
    params = delta_params(normalize=False, rescale=False, **Largest.params, sign=SIGN) | {
        "weight": Param(
            float, 1.0, "factor on this model's task vector", per_model=True, native=True
        ),
        "density": Param(
            float, 0.2, "with `merged: ties`, share of the task vector's elements to keep",
            per_model=True, ge=0, le=1,
        ),
        "lambda": Param(
            float, 0.3, "factor on the merged task vector; the authors choose it on validation data"
        ),
        "merged": Param(
            str, "sum", "the task vector that is masked: the sum, or the sum of what TIES keeps",
            choices=("sum", "ties"), native=True,
        ),
        "tall": Param(
            float, 0.4, "how much larger this task's change must be than what the others add; the "
            "authors choose from 0.2 to 0.6 on validation data",
            per_model=True, ge=0, native=True,
        ),
        "least": Param(
            int, 2, "tasks that must use an element: 0 for all elements, 1 to drop those that none "
            "uses, 2 those of one task alone too", ge=0, native=True,
        ),
    }  # fmt: skip
    selection = Largest()
    example = """
merge_method: consensus
base_model: base
models:
  - model: expert_a
    parameters: {tall: 0.4}
  - model: expert_b
    parameters: {tall: 0.4}
parameters: {lambda: 0.5}
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        deltas = factored(x, s, x.deltas)
        parts = [delta * weight for delta, weight in zip(deltas, s.weight, strict=True)]
        merged = self._merged(x, s, parts)
        users = [
            (part.abs() > (merged - part).abs() * tall) * 1.0
            for part, tall in zip(parts, s.tall, strict=True)
        ]
        kept = torch.where(total(users) >= s.least, merged, torch.zeros_like(merged))
        return x.base + kept * s.lambda_

    def _merged(self, x: Inputs, s: Settings, parts: list[Tensor]) -> Tensor:
        if s.merged == "sum":
            return total(parts)
        kept = [self.selection.kept(x, s, i, delta) for i, delta in enumerate(x.deltas)]
        kept = factored(x, s, kept)
        trimmed = [part * weight for part, weight in zip(kept, s.weight, strict=True)]
        votes = [torch.sign(part) for part in trimmed] if s.sign == "count" else trimmed
        return elect(trimmed, votes, s.weight, s.normalize)
