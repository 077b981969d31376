"""Localize-and-Stitch: a few elements of each expert, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Need
from mergewise.methods._elements import ElementMethod, element_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._select import kept_count
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class LocalizeAndStitch(ElementMethod):
    """Adds the masked part of every task vector; the owners of an element share it equally.

    A mask is the `density` share of the largest changes (never elements without one), or
    (`localize: mask`) a trained one from an evidence file: statistic `mask`, one 0 or 1 an
    element. Tensors that some expert's file does not describe keep the base's values then, and the
    files say which tensors it is for, not `tensors`. With one expert this is skill grafting
    (Panigrahi et al. 2023, arXiv 2302.06600).
    """

    name = "localize_and_stitch"
    summary = "keeps a small part of each expert and averages the parts where they overlap"
    advice = (
        "To put small, telling parts of experts beside each other; masks come from the guide "
        "of this name, or without data from the largest changes. Without data the small part "
        "kept may be too little."
    )
    family = "task vectors"
    formula = (
        "b + sum_i m_i d_i / max(1, sum_i m_i), m_i = trained, or [|d_i| > 0 in the top density]"
    )
    source = "Localize-and-Stitch (He et al. 2024, arXiv 2408.13656)"
    variant = (
        "paper: the mean over owners; exactly the share asked for, ties by position. Embeddings "
        "and heads keep the base's values, as the authors have it (`tensors: layers`); of language "
        "models they leave out a final norm too"
    )
    copies = 3
    params = {
        "localize": Param(
            str,
            "magnitude",
            "where the masks come from: the largest changes, or each model's evidence",
            choices=("magnitude", "mask"),
            native=True,
        ),
        "density": Param(
            float, 0.05, "share of the changes kept, without masks", per_model=True, ge=0, le=1
        ),
        "granularity": Param(
            str,
            "model",
            "over what the changes are ranked: each tensor, or the whole model",
            choices=("tensor", "model"),
            native=True,
        ),
        **element_params("layers"),
    }
    example = """
merge_method: localize_and_stitch
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {density: 0.1}
"""

    def inside(self, p: Settings) -> bool:
        return p.localize == "mask" or super().inside(p)

    def needs(self, p: Settings) -> tuple[Need, ...]:
        trained = Need("mask", "mask", "examples", "element", otherwise="the base's values")
        return (trained,) if p.localize == "mask" else ()

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [delta.abs() for delta in x.deltas] if self._ranks(s) else []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[kept_count(d, n)] for d in p.density] if self._ranks(p) else []

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if not self.inside(s):
            return self.left(x, s)
        assert x.base is not None
        if s.localize == "mask" and not x.evidence:
            return x.base + torch.zeros_like(x.base)
        owned = self._masks(x, s)
        parts = [
            torch.where(mask, delta, torch.zeros_like(delta))
            for mask, delta in zip(owned, x.deltas, strict=True)
        ]
        owners = total([mask * 1.0 for mask in owned])
        return x.base + total(parts) / torch.clamp(owners, min=1.0)

    def _ranks(self, p: Settings) -> bool:
        return p.localize == "magnitude" and self.inside(p)

    def _masks(self, x: Inputs, s: Settings) -> list[Tensor]:
        if s.localize == "mask":
            return [mask > 0.5 for mask in x.evidence[0]]
        # where a density reaches down to zeros, what an expert left alone is not its own
        return [
            x.at_least(delta.abs(), s.thresholds[i][0], i) & (delta.abs() > 0)
            for i, delta in enumerate(x.deltas)
        ]
