"""Averages weighted by Fisher information."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._quadratic import solve_diagonal
from mergewise.methods._weights import combination, shares

if TYPE_CHECKING:
    from torch import Tensor

_NEED = Need("fisher", "squares", "examples", "element", otherwise="the weighted mean")


class Fisher(Method):
    """Every element's mean over the models, each weighted by how sure the model is of it.

    Tensors that some expert's evidence does not describe get the weighted mean, and so does an
    element of which no model's Fisher information says anything. The authors' code floors the
    information of its first model (the target) at 1e-6 there, so that the target wins:
    `floor: 1e-6` with `favor_first: true`.

    `information: fisher_nodes` reads that of attention heads and neurons in place of every
    weight's own (Fisher Mask Nodes, Thennal et al. 2024, arXiv 2403.09891, who do not normalise).
    """

    name = "fisher"
    summary = "average weighted by each model's diagonal Fisher information"
    advice = (
        "When examples of each expert's task are at hand to measure what matters to it. "
        "Fisher information differs in scale between tasks, so `normalize` or weights decide "
        "who is heard."
    )
    base = "ignored"
    formula = "sum_i l_i F_i x_i / sum_i l_i F_i, l_i = w_i / |F_i| (w_i if normalize is false)"
    source = "Fisher merging (Matena & Raffel 2022, arXiv 2111.09832)"
    variant = "paper; |F_i| over the whole model, as the authors' code does by default"
    params = {
        "weight": Param(float, 1.0, "share of this model", per_model=True, ge=0, native=True),
        "information": Param(
            str,
            "fisher",
            "of every weight, or of heads and neurons (collect fisher_nodes)",
            choices=("fisher", "fisher_nodes"),
            native=True,
        ),
        "normalize": Param(
            bool, True, "divide each model's information by its norm over the model", native=True
        ),
        "floor": Param(float, 0.0, "least information of an element", ge=0, native=True),
        "favor_first": Param(bool, False, "the floor holds for the first model only", native=True),
    }
    example = """
merge_method: fisher
models:
  - model: expert_a
    evidence: expert_a.fisher.safetensors
  - model: expert_b
    evidence: expert_b.fisher.safetensors
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def needs(self, p: Settings) -> tuple[Need, ...]:
        if p.information == "fisher_nodes":
            return (replace(_NEED, statistic="fisher_nodes", per="spread"),)
        return (_NEED,)

    def pooled(self, p: Settings) -> bool:
        return bool(p.normalize)

    def problem(self, p: Settings, experts: int) -> str | None:
        return None if sum(p.weight) > 0 else "the weights are all 0"

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        if not (x.evidence and s.normalize):
            return {}
        return {f"norm_{i}": f * f for i, f in enumerate(x.evidence[0])}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        norms = [math.sqrt(totals.get(f"norm_{i}", 0.0)) for i in range(len(p.weight))]
        factor = [w / norm if norm > 0 else w for w, norm in zip(p.weight, norms, strict=True)]
        return {"factor": factor, "share": shares(p.weight)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if not x.evidence:
            return combination(x.experts, s.share)
        floored = len(x.experts) if not s.favor_first else 1
        information = [
            torch.clamp(f, min=s.floor) if i < floored else f for i, f in enumerate(x.evidence[0])
        ]
        return solve_diagonal(x.experts, information, s.factor, s.share)
