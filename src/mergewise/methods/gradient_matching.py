"""Uncertainty-based gradient matching: task vectors weighted by curvature, with the base's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination, total

if TYPE_CHECKING:
    from torch import Tensor


class GradientMatching(Method):
    """Adds task vectors, each element weighted by how sure its expert and the base are of it.

    H is a model's diagonal Fisher information times `scale` (`base_scale` for the base; the
    authors take the number of training examples). With `base_scale: 0` the base's is not read,
    and with `delta: 0` too the result, at weights that sum to one, is the Fisher average; with a
    large `delta` it is task arithmetic, and so it is where nobody knows anything and in tensors
    that some model's evidence does not describe.
    """

    name = "gradient_matching"
    summary = "task vectors weighted by the experts' and the base's Fisher information"
    advice = (
        "When Fisher information of base and experts can be measured, to weigh task vectors "
        "by curvature. A base whose data is unknown has to be measured on something like it."
    )
    formula = "b + sum_i w_i (H0 + H_i + delta) d_i / (H0 + delta + sum_i w_i H_i)"
    source = "Uncertainty-based gradient matching (Daheim et al. 2024, arXiv 2310.12808)"
    variant = "the authors' script: one weight for the sum of curvatures and of task vectors"
    params = {
        "weight": Param(float, 1.0, "factor on this model's task vector", per_model=True, ge=0,
                        native=True),
        "scale": Param(
            float, 1.0, "factor on this model's information, such as its training examples",
            per_model=True, ge=0, native=True,
        ),
        "base_scale": Param(float, 1.0, "the same for the base", ge=0, native=True),
        "delta": Param(float, 1e-12, "added to the base's information", ge=0, native=True),
    }  # fmt: skip
    example = """
merge_method: gradient_matching
base_model: base
models:
  - model: base
    evidence: base.fisher.safetensors
  - model: expert_a
    evidence: expert_a.fisher.safetensors
  - model: expert_b
    evidence: expert_b.fisher.safetensors
parameters: {weight: 0.5}
"""

    def needs(self, p: Settings) -> tuple[Need, ...]:
        own = Need("fisher", "squares", "examples", "element", otherwise="task arithmetic")
        base = replace(own, of="base")
        return (own, base) if p.base_scale > 0 else (own,)

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"prior": "base" if p.base_scale > 0 else "none"}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        plain = combination(x.deltas, s.weight)
        if not x.evidence:
            return x.base + plain
        own = [f * scale for f, scale in zip(x.evidence[0], s.scale, strict=True)]
        prior = x.evidence[1][0] * s.base_scale if s.prior == "base" else torch.zeros_like(plain)
        prior = prior + s.delta
        whole = prior + combination(own, s.weight)
        known = whole > 0
        safe = torch.where(known, whole, torch.ones_like(whole))
        parts = [
            delta * ((prior + h) / safe) * w
            for delta, h, w in zip(x.deltas, own, s.weight, strict=True)
        ]
        return x.base + torch.where(known, total(parts), plain)
