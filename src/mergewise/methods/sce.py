"""SCE: select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._delta import INT8_MASK, SIGN, elect
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


class Sce(Method):
    """Elements on which the experts differ most, weighted by each expert's energy.

    The weights are each expert's mean squared (selected) change in the tensor, as a share of all
    experts'. If no expert changed the tensor they are equal. Elements on which all experts agree
    have no variance, and stay at the base's value if `select_topk` is below 1.
    """

    name = "sce"
    summary = "keeps the elements of highest variance, weights experts by energy, elects signs"
    advice = (
        "For fused chat models with one base, weights being found from the task vectors "
        "themselves. At select_topk 1 nothing is dropped; the best share is not known without "
        "data."
    )
    family = "task vectors"
    formula = "b + sum_i v_i m_i d_i / sum_i v_i m_i, v_i = mean(d_i^2) / sum_j mean(d_j^2)"
    source = "FuseChat SCE (Wan et al. 2024, arXiv 2408.07990)"
    variant = "mergekit; FuseAI's code adds changes that were not selected too (selects: weights)"
    copies = 3
    params = {
        "select_topk": Param(
            float, 1.0, "share of the elements that differ between experts to keep", ge=0, le=1
        ),
        "selects": Param(
            str,
            "changes",
            "what the selection is for: the changes and the experts' weights, or the weights "
            "alone, as in the authors' own code",
            choices=("changes", "weights"),
            native=True,
        ),
        "sign": SIGN,
        "int8_mask": INT8_MASK,
    }
    counts_nonzero = True
    example = """
merge_method: sce
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {select_topk: 0.5}
"""

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        # differences from the first expert: exactly zero where all agree
        steps = [delta - x.deltas[0] for delta in x.deltas]
        mean = total(steps) / len(steps)
        return [total([(step - mean) * (step - mean) for step in steps])]

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        everything = p.select_topk >= 1
        return [[n if everything else int(p.select_topk * nonzero[0])]]

    def _selected(self, x: Inputs, s: Settings) -> list[Tensor]:
        chosen = x.at_least(self.scores(x, s)[0], s.thresholds[0][0], 0)
        return [torch.where(chosen, delta, torch.zeros_like(delta)) for delta in x.deltas]

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return {f"energy_{i}": delta * delta for i, delta in enumerate(self._selected(x, s))}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        energy = [totals[f"energy_{i}"] for i in range(len(totals))]
        whole = sum(energy)
        return {"share": [e / whole if whole > 0 else 1.0 / len(energy) for e in energy]}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        deltas = self._selected(x, s) if s.selects == "changes" else x.deltas
        parts = [delta * share for delta, share in zip(deltas, s.share, strict=True)]
        votes = [torch.sign(delta) for delta in deltas] if s.sign == "count" else deltas
        return x.base + elect(parts, votes, s.share, normalize=True)
