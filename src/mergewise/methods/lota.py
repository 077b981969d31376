"""LoTA's sparse experts: each task's largest changes, and a rule for where they overlap."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs
from mergewise.methods._delta import DeltaMethod, delta_params, factored
from mergewise.methods._elements import ElementMethod, element_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._select import GRANULARITY, Largest
from mergewise.methods._weights import WEIGHT, combination, total

if TYPE_CHECKING:
    from torch import Tensor


class Lota(ElementMethod, DeltaMethod):
    """Keeps each task's largest changes; where no two tasks keep an element, none interferes.

    This is the part without training: the authors find the mask on a first run (calibration),
    then train again from the base within it. Experts trained so have sparse task vectors already;
    then `density: 1` keeps them as they are. They mask weights of attention and MLP layers only:
    so does `tensors: linear`, and all others keep the base's values.
    """

    name = "lota"
    summary = "keeps each expert's largest changes, with a rule for elements that several keep"
    advice = (
        "For experts trained sparsely, or few enough that their largest tenths hardly "
        "overlap. Without the authors' sparse training it is a trimmed sum."
    )
    formula = (
        "m_i = top density_i of |d_i|; b + lambda sum_i w_i m_i d_i, or over sum_i m_i "
        "(overlap: mean), or m_i without the masks before it (overlap: first)"
    )
    source = "Lottery Ticket Adaptation (Panda et al. 2024, arXiv 2406.16797)"
    variant = (
        "masks over all weights of linear layers, as in the authors' code (attention and MLP), "
        "exactly the share asked for; `tensors: all` for the whole model. Training within the "
        "masks is not part of it. With overlap: first, elements that an earlier expert keeps are "
        "dropped; the authors' constrained masks choose others in their place"
    )
    params = delta_params(normalize=False, rescale=False, **Largest.params) | {
        "weight": WEIGHT,
        "density": Param(
            float, 0.1, "share of the task vector's elements to keep", per_model=True, ge=0, le=1
        ),
        "granularity": replace(GRANULARITY, default="model"),
        **element_params("linear"),
        "overlap": Param(
            str, "sum", "elements that several experts keep: added up, averaged, or left to the "
            "first of them", choices=("sum", "mean", "first"), native=True,
        ),
    }  # fmt: skip
    selection = Largest()
    symmetric = False  # with overlap: first
    example = """
merge_method: lota
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {density: 0.1, overlap: mean}
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if not self.inside(s):
            return self.left(x, s)
        assert x.base is not None
        kept = [self.selection.kept(x, s, i, delta) for i, delta in enumerate(x.deltas)]
        owners = [part != 0 for part in kept]
        kept = factored(x, s, kept)
        if s.overlap == "first":
            kept = _without_earlier(kept, owners)
        merged = combination(kept, s.factor)
        if s.overlap == "mean":
            merged = merged / torch.clamp(total([mask * 1.0 for mask in owners]), min=1.0)
        return x.base + merged * s.lambda_


def _without_earlier(parts: list[Tensor], owners: list[Tensor]) -> list[Tensor]:
    """Every part where no earlier one is."""
    taken, out = owners[0], parts[:1]
    for part, mask in zip(parts[1:], owners[1:], strict=True):
        out.append(torch.where(taken, torch.zeros_like(part), part))
        taken = taken | mask
    return out
