"""Sparse Model Soups: an average that is as sparse as its ingredients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import MergewiseError
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import cancel, combination, no_share, shares

if TYPE_CHECKING:
    from torch import Tensor


class SparseSoup(Method):
    """The weighted average of models that were pruned alike: zeros of one are zeros of all.

    Copies of one pruned model, retrained within its mask, average to a model of the same mask.
    Models of other masks would fill each other's zeros; that is an error, unless `masks` says
    what is wanted instead. Batch norms need their statistics again (the authors recompute them).
    """

    name = "sparse_soup"
    summary = "averages models pruned alike, and sees to it that the result is as sparse"
    advice = (
        "For copies of one pruned model that were retrained within its mask. Models pruned "
        "apart have other masks, and are refused unless told otherwise."
    )
    base = "ignored"
    experts = (1, None)
    formula = "m sum_i w_i x_i / sum_i w_i, m = [x_i != 0], which must be the same for all i"
    source = "Sparse Model Soups (Zimmer et al. 2023, arXiv 2306.16788)"
    variant = "the averaging step; pruning and retraining are not part of it"
    symmetric = False  # with masks: first
    params = {
        "weight": Param(float, 1.0, "relative weight of this model", per_model=True, native=True),
        "masks": Param(
            str, "same", "where zeros differ between models: an error; zero if any model has a "
            "zero there; the first model's zeros; or none but those of all models (plain average)",
            choices=("same", "shared", "first", "union"), native=True,
        ),
    }  # fmt: skip
    example = """
merge_method: sparse_soup
models:
  - model: expert_a
    parameters: {weight: 0.5}
  - model: expert_b
    parameters: {weight: 0.5}
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def problem(self, p: Settings, experts: int) -> str | None:
        return no_share(p.weight, "sparse_soup") if cancel(p.weight) else None

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        if s.masks != "same":
            return {}
        return {"differing": (_any(x.experts) & ~_all(x.experts)) * 1.0}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        differing = totals.get("differing", 0.0)
        if differing:
            raise MergewiseError(
                f"{int(differing):,} of {n:,} elements are zero in some models and not in others, "
                "so they were not pruned alike; set masks: first (the first model's zeros), shared "
                "(zero if zero in any) or union (plain average) if that is what you want"
            )
        return {"share": shares(p.weight, "sparse_soup")}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        merged = combination(x.experts, s.share)
        if s.masks == "union":
            return merged
        kept = x.experts[0] != 0 if s.masks == "first" else _all(x.experts)
        return torch.where(kept, merged, torch.zeros_like(merged))


def _all(models: Any) -> Tensor:
    mask: Tensor = models[0] != 0
    for model in models[1:]:
        mask = mask & (model != 0)
    return mask


def _any(models: Any) -> Tensor:
    mask: Tensor = models[0] != 0
    for model in models[1:]:
        mask = mask | (model != 0)
    return mask
