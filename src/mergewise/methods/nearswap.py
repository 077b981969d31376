"""Move the base towards another model only where the two are close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import REQUIRED, Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class NearSwap(Method):
    """Interpolation whose strength is inverse to the distance, element by element."""

    name = "nearswap"
    summary = "takes the other model's value where the two nearly agree"
    advice = (
        "To lend a model a second one's values where the two nearly agree. It changes little "
        "by design, and has no say on what disagrees."
    )
    family = "averages"
    experts = (1, 1)
    formula = "b + c (x - b) with c = clamp(t / max(|x - b|, 1e-6), 0, 1)"
    source = "alchemonaut, QuartetAnemoi-70B (2024, Hugging Face)"
    params = {
        "t": Param(float, REQUIRED, "distance up to which the other's value is taken whole", ge=0)
    }
    example = """
merge_method: nearswap
base_model: base
models:
  - model: expert_a
parameters: {t: 0.001}
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        other = x.experts[0]
        distance = torch.clamp((x.base - other).abs(), min=1e-6)
        near = torch.clamp(s.t / distance, min=0.0, max=1.0)
        return near * other + (1.0 - near) * x.base
