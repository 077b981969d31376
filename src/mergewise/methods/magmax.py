"""MagMax: of every element, the largest change that any expert made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import WEIGHT

if TYPE_CHECKING:
    from torch import Tensor


class MagMax(Method):
    """Elementwise selection by magnitude; of equal magnitudes the later expert's is taken."""

    name = "magmax"
    summary = "takes of every element the largest change that any expert made"
    advice = (
        "For tasks learnt one after the other from one base, each starting at the last. Of "
        "every element only the largest change counts, so a loud expert drowns the others."
    )
    family = "task vectors"
    formula = "b + lambda w_j d_j with j = argmax_i |w_i d_i|, element by element"
    source = "MagMax (Marczak et al. 2024, arXiv 2407.06322)"
    variant = (
        "paper and code; the authors run it with lambda 0.5, on experts tuned one after another"
    )
    symmetric = False  # equal magnitudes go to the later expert
    params = {
        "weight": WEIGHT,
        "lambda": Param(float, 0.5, "factor on the merged task vector", native=True),
    }
    example = """
merge_method: magmax
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {lambda: 0.5}
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        parts = x.weighted(s.weight)
        largest = parts[0]
        for part in parts[1:]:
            largest = torch.where(part.abs() >= largest.abs(), part, largest)
        return x.base + largest * s.lambda_
