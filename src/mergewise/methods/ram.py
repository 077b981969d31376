"""RAM: keep what one expert alone changed, average what several changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor


def _touched(x: Inputs, s: Settings) -> list[Tensor]:
    return [delta.abs() > s.epsilon for delta in x.deltas]


def _count(masks: list[Tensor]) -> Tensor:
    return total([mask * 1.0 for mask in masks])


class Ram(Method):
    """Elements changed by one expert keep its change in full; shared ones are averaged."""

    name = "ram"
    summary = "adds what one expert alone changed, averages what several changed"
    advice = (
        "For sparse changes, as of reinforcement learning, of which most are one expert's "
        "alone. After full fine-tuning nearly everything overlaps, and it is close to the "
        "mean."
    )
    family = "task vectors"
    formula = "b + sum_i m_i d_i / max(1, sum_i m_i) with m_i = [|d_i| > epsilon]"
    source = "Reinforced Agent Merging (Yuan et al. 2026, arXiv 2601.13572)"
    params = {
        "epsilon": Param(float, 1e-5, "changes up to this size count as none", ge=0),
    }
    example = """
merge_method: ram
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        masks = _touched(x, s)
        changes = [
            torch.where(mask, delta, torch.zeros_like(delta))
            for delta, mask in zip(x.deltas, masks, strict=True)
        ]
        return x.base + total(changes) / torch.clamp(_count(masks), min=1.0)


class RamPlus(Method):
    """`ram`, with unique changes enlarged for experts that share much of what they changed."""

    name = "ramplus_tl"
    summary = "ram with each expert's unique changes scaled up by its overlap, tensor by tensor"
    advice = (
        "As ram, with unique changes scaled up where much is shared. After full fine-tuning "
        "nearly everything overlaps, and it is close to the mean."
    )
    family = "task vectors"
    formula = (
        "as ram, unique changes of expert i times 1 + r min(alpha, shared_i / max(unique_i, eps))"
    )
    source = "Reinforced Agent Merging, RAM+ (Yuan et al. 2026, arXiv 2601.13572)"
    params = {
        "epsilon": Param(float, 1e-5, "changes up to this size count as none", ge=0),
        "r": Param(float, 0.1, "strength of the enlargement"),
        "alpha": Param(float, 0.2, "largest ratio of shared to unique that counts", ge=0),
    }
    example = """
merge_method: ramplus_tl
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {r: 0.1, alpha: 0.2}
"""

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        masks = _touched(x, s)
        shared = _count(masks) > 1.5
        terms = {f"unique_{i}": (mask & ~shared) * 1.0 for i, mask in enumerate(masks)}
        return terms | {f"shared_{i}": (mask & shared) * 1.0 for i, mask in enumerate(masks)}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        factors = []
        for i in range(len(totals) // 2):
            ratio = totals[f"shared_{i}"] / max(totals[f"unique_{i}"], p.epsilon, 1e-12)
            factors.append(1.0 + p.r * min(max(ratio, 0.0), p.alpha))
        return {"enlarge": factors}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        masks = _touched(x, s)
        count = _count(masks)
        unique = count < 1.5
        changes = []
        for delta, mask, factor in zip(x.deltas, masks, s.enlarge, strict=True):
            sized = torch.where(unique, delta * factor, delta)
            changes.append(torch.where(mask, sized, torch.zeros_like(delta)))
        return x.base + total(changes) / torch.clamp(count, min=1.0)
