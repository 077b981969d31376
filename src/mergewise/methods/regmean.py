"""RegMean: the weights whose outputs are nearest to every expert's on its own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._quadratic import solve_gram
from mergewise.methods._weights import combination, shares

if TYPE_CHECKING:
    from torch import Tensor


class RegMean(Method):
    """Least squares on the layers' outputs, from the Gram matrices of their inputs alone.

    Minimises ``sum_i w_i |X_i (W - W_i)^T|^2`` for every weight that multiplies rows of inputs.
    All other tensors (biases, norms, embeddings) get the weighted mean, as in the paper; an
    embedding that is the output head too is solved as the head.
    """

    name = "regmean"
    summary = "matches the experts' outputs on their own calibration inputs, layer by layer"
    advice = (
        "When unlabelled inputs of each expert's task are at hand: no gradients, nothing to "
        "train. It matches linear layers only; embeddings and norms are averaged."
    )
    base = "ignored"
    formula = (
        "(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1, G_i = a X^T X + (1 - a) diag(X^T X) per token"
    )
    source = "RegMean (Jin et al. 2023, arXiv 2212.09849)"
    variant = "paper; Gram matrices are means over tokens, as in the authors' code"
    params = {
        "weight": Param(float, 1.0, "share of this model", per_model=True, ge=0, native=True),
        "off_diagonal": Param(
            float, 0.9, "factor on the Gram matrices' off-diagonal elements", ge=0, le=1,
            native=True,
        ),
        "ridge": Param(
            float, 1e-6, "added to the diagonal, as a share of its mean", ge=0, native=True
        ),
    }  # fmt: skip
    example = """
merge_method: regmean
models:
  - model: expert_a
    evidence: expert_a.gram.safetensors
  - model: expert_b
    evidence: expert_b.gram.safetensors
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return (Need("input_gram", "gram", "tokens", "matrix", otherwise="the weighted mean"),)

    def problem(self, p: Settings, experts: int) -> str | None:
        return None if sum(p.weight) > 0 else "the weights are all 0"

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"share": shares(p.weight)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if not x.evidence:
            return combination(x.experts, s.share)
        grams = x.evidence[0]
        return solve_gram(x.experts, grams, s.weight, s.share, s.ridge, s.off_diagonal)
