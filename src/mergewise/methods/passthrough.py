"""Copy one model, scaled if asked: the building block of layer stacking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Passthrough(Method):
    """One model's tensors as they are, or times `scale`."""

    name = "passthrough"
    summary = "copies one model's tensors, scaled if asked; for stacking layers"
    advice = (
        "For stacking layers (depth up-scaling) and for copying parts of models. It merges "
        "nothing: what is stacked usually needs training afterwards."
    )
    base = "ignored"
    experts = (1, 1)
    formula = "scale * x   (x itself if scale is not given)"
    source = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    params = {
        "scale": Param(float, None, "factor on the tensor; without it a plain copy", per_model=True)
    }
    example = """
merge_method: passthrough
slices:
  - sources:
      - model: expert_a
        layer_range: [0, 2]
  - sources:
      - model: expert_b
        layer_range: [1, 2]
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        scale = s.scale[0]
        return x.experts[0] if scale is None else x.experts[0] * scale
