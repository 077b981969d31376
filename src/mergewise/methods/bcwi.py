"""Backward compatibility: a new model drawn back to the old one it was trained from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Bcwi(Method):
    """Interpolates between an old model (the base) and its successor, to cut negative flips.

    With `importance: fisher` each element holds on to the old value as far as the old model's
    Fisher information says. With `importance: none` it is linear interpolation,
    alpha old + (1 - alpha) new, as `linear` with these weights gives; so are tensors that the
    old model's evidence does not describe. Choose alpha by the flips on held-out data.
    """

    name = "bcwi"
    summary = "a new model drawn back to the old, most where the old one's Fisher information is"
    advice = (
        "For a model that is to be updated without flipping the old one's right answers. It "
        "needs Fisher information of the old model, and gives up some of the update."
    )
    experts = (1, 1)
    formula = "(alpha F b + (1 - alpha) x) / (alpha F + 1 - alpha), F of the old model"
    source = "BCWI (Schumann et al. 2024, arXiv 2301.10546)"
    variant = (
        "UNVERIFIED: the abstract has weights by importance, their form is from memory; dividing F "
        "by its mean over the model is ours"
    )
    params = {
        "alpha": Param(float, 0.5, "share of the old model", ge=0, le=1, native=True),
        "importance": Param(
            str,
            "fisher",
            "how an element's share is weighted",
            choices=("fisher", "none"),
            native=True,
        ),
        "normalize": Param(
            bool, True, "divide the information by its mean over the model", native=True
        ),
    }
    example = """
merge_method: bcwi
base_model: base
models:
  - model: base
    evidence: base.fisher.safetensors
  - model: expert_a
parameters: {alpha: 0.5}
"""

    def needs(self, p: Settings) -> tuple[Need, ...]:
        if p.importance == "none":
            return ()
        plain = "linear interpolation"
        return (Need("fisher", "squares", "examples", "element", of="base", otherwise=plain),)

    def pooled(self, p: Settings) -> bool:
        return bool(p.normalize) and p.importance == "fisher"

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        if not x.evidence or not s.normalize:
            return {}
        known = x.evidence[0][0]
        return {"information": known, "elements": torch.ones_like(known)}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        whole = totals.get("information", 0.0)
        factor = totals["elements"] / whole if whole > 0 else 1.0
        return {"old": p.alpha * factor, "share": p.alpha, "new": 1.0 - p.alpha}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        [new] = x.experts
        plain = x.base * s.share + new * s.new
        if not x.evidence:
            return plain
        hold = x.evidence[0][0] * s.old
        whole = hold + s.new
        known = whole > 0
        safe = torch.where(known, whole, torch.ones_like(whole))
        kept = hold / safe
        return torch.where(known, x.base * kept + new * (1.0 - kept), plain)
