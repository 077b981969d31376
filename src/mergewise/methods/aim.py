"""AIM: a merged model drawn back to the base along the inputs that drive the base most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Aim(Method):
    """Relaxes every input channel of a merged model toward the base, the strongest ones most.

    The one model besides the base is any merge's result: a checkpoint, or an earlier stage of the
    recipe. The base's evidence tells the mean magnitude a of each input channel; within a tensor
    the strongest keeps `omega` of its change, one that is never driven all of it. Norms' vectors
    are relaxed element by element. Tensors that the evidence does not describe (embeddings,
    biases) keep the merged values; an embedding that is the output head too is relaxed as it.
    """

    name = "aim"
    summary = "relaxes a merged model toward the base along its strongest input channels"
    advice = (
        "As a second stage after any merge, to protect what the base's inputs use most. It "
        "draws back towards the base, so the experts' gains shrink as well."
    )
    experts = (1, 1)
    formula = "b + d r_j, r_j = 1 - (1 - omega) a_j / max(a), a_j = mean |input j| of the base"
    source = "Activation-Informed Merging (Nobari et al. 2025, arXiv 2502.02421)"
    variant = "the authors' code; mean magnitudes of the inputs, scaled in each tensor by itself"
    params = {
        "omega": Param(
            float, 0.4, "share of its change that the strongest channel keeps", ge=0, le=1,
            native=True,
        ),
    }  # fmt: skip
    example = """
name: merged
merge_method: linear
models:
  - model: expert_a
    parameters: {weight: 0.5}
  - model: expert_b
    parameters: {weight: 0.5}
---
merge_method: aim
base_model: base
models:
  - model: base
    evidence: base.inputs.safetensors
  - model: merged
parameters: {omega: 0.4}
"""

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return (
            Need(
                "input_moments", "sum_abs", "tokens", "column", of="base", vectors=True,
                otherwise="the merged values",
            ),
        )  # fmt: skip

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [x.evidence[0][0]] if x.evidence else []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[1]]

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        if not getattr(p, "thresholds", None):
            return {}
        peak = p.thresholds[0][0].value
        # of one element the engine says that all reach it, in place of its value
        return {"peak": peak, "alone": n == 1 or peak <= 0, "relaxed": 1.0 - p.omega}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        [merged] = x.experts
        if not x.evidence:
            return merged * 1.0
        strength = x.evidence[0][0]
        share = (strength > 0) * 1.0 if s.alone else strength / s.peak
        back = share * s.relaxed
        change = merged - x.base
        # from the nearer end, so that all and nothing are exact
        return torch.where(back > 0.5, x.base + change * (1.0 - back), merged - change * back)
