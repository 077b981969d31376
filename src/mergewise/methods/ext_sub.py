"""Ext-Sub: subtract of an anti-expert what it does not share with the expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs
from mergewise.methods._matrix import PlacedMethod, by_matrix
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


def extracted(expert: Tensor, anti: Tensor, alpha: float) -> Tensor:
    """The expert's rows minus `alpha` times what is the anti-expert's alone, row by row.

    The part of `anti` along the middle of both directions is what they share. Its length is such
    that it equals half of `anti` plus half of as long a vector along `expert`: nothing to divide
    by where the two are opposite.
    """
    sizes, lengths = (rows.norm(dim=-1, keepdim=True) for rows in (expert, anti))
    known = sizes > 0
    along = expert / torch.where(known, sizes, torch.ones_like(sizes)) * lengths
    return expert - alpha * torch.where(known, (anti - along) / 2, anti)


class ExtSub(PlacedMethod):
    """Forgets a fault without what the faulty model does as well as the good one.

    The first model is the expert, the second the anti-expert. A row holds the weights of one
    output; a vector is one row. Where the expert changed nothing, nothing is shared, and all of
    the anti-expert is subtracted.

    IA3 adapters, merged as ``BASE+ADAPTER``, are compared weight by weight, not as the vectors
    they are: rows that they scale have one direction, so that what both scale up is shared.
    """

    name = "ext_sub"
    summary = "subtracts of an anti-expert what it does not share with the expert, row by row"
    advice = (
        "To take an unwanted ability out of an expert and leave what it shares with it. It "
        "needs an anti-expert trained on the unwanted, with the same kind of adapter."
    )
    family = "arithmetic"
    experts = (2, 2)
    formula = "b + e - alpha (a - (a.c) c) by row, c = e/|e| + a/|a| made unit length"
    source = "Ext-Sub, Separate the Wheat from the Chaff (Hu et al. 2023, arXiv 2308.08090)"
    variant = "the authors' code for LoRA, on full changes; opposite or zero rows share nothing"
    symmetric = False
    unfused = 7
    params = {
        "alpha": Param(float, 1.0, "how much of the anti-expert to subtract", native=True),
    }
    example = """
merge_method: ext_sub
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def access(self, p: Settings) -> Access:
        return Access.WHOLE if p.kind == "stack" or p.turned else Access.ROWS

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        return 3.0 * math.prod(shape)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        expert, anti = x.deltas
        if self.access(s) is Access.ROWS:
            return x.base + extracted(expert, anti, s.alpha)
        pair = [expert, anti]
        return x.base + by_matrix(pair, s, lambda two: extracted(two[0], two[1], s.alpha))
