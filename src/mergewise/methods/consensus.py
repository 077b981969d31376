"""Consensus merging: elements of the merged task vector that enough tasks have a use for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Need
from mergewise.methods._delta import SIGN, DeltaMethod, delta_params, elect, factored, shared_out
from mergewise.methods._params import Param, Settings
from mergewise.methods._select import GRANULARITY, Largest
from mergewise.methods._weights import WEIGHT, total

if TYPE_CHECKING:
    from torch import Tensor


_PARAMS = delta_params(normalize=False, rescale=False, **Largest.params, sign=SIGN)
del _PARAMS["rescale"]  # nothing is made up for: what is dropped is not wanted


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
    variant = (
        "official code (strictly greater; the paper has >=), which trims over the whole model for "
        "`merged: ties`"
    )
    params = _PARAMS | {
        "weight": WEIGHT,
        "density": Param(
            float, 0.2, "with `merged: ties`, share of the task vector's elements to keep",
            per_model=True, ge=0, le=1,
        ),
        "granularity": replace(GRANULARITY, default="model"),
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

    def problem(self, p: Settings, experts: int) -> str | None:
        if p.least > experts:
            few = "1 model takes" if experts == 1 else f"{experts} models take"
            return (
                f"`least` is {p.least} and {few} part, so that nothing would be kept and the "
                "result be the base; lower `least`, or name more models"
            )
        return super().problem(p, experts) if _trims(p) else None

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return super().needs(p) if p.factors or _trims(p) else ()

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return super().scores(x, s) if _trims(s) else []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return super().ranks(p, n, nonzero) if _trims(p) else []

    def ranked(self, p: Settings) -> bool:
        return _trims(p) and super().ranked(p)

    def masks(self, x: Inputs, s: Settings) -> list[Tensor]:
        return super().masks(x, s) if _trims(s) else []

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return {}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        # an election divides by the weights of those that take part
        return {"scale": p.lambda_ * (1.0 if _trims(p) else shared_out([1.0], p)[0])}

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
        return x.base + kept * s.scale

    def _merged(self, x: Inputs, s: Settings, parts: list[Tensor]) -> Tensor:
        if s.merged == "sum":
            return total(parts)
        kept = [self.selection.kept(x, s, i, delta) for i, delta in enumerate(x.deltas)]
        kept = factored(x, s, kept)
        trimmed = [part * weight for part, weight in zip(kept, s.weight, strict=True)]
        votes = [torch.sign(part) for part in trimmed] if s.sign == "count" else trimmed
        return elect(trimmed, votes, s.weight, s.normalize)


def _trims(p: Settings) -> bool:
    """Whether elements are selected at all."""
    return bool(p.merged == "ties")
