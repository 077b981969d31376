"""Rules for task vectors in coordinates that they share, in which elements mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._delta import elect
from mergewise.methods._select import kept_count

if TYPE_CHECKING:
    from torch import Tensor


def threshold(values: Tensor, density: float) -> float:
    """The magnitude that the share `density` of the elements reach; infinite for none."""
    count = kept_count(density, values.numel())
    if not count or not values.numel():
        return float("inf")
    return float(values.abs().flatten().kthvalue(values.numel() - count + 1).values)


def trimmed(values: Tensor, least: float) -> Tensor:
    """`values` with those of magnitude below `least` set to zero."""
    return torch.where(values.abs() >= least, values, torch.zeros_like(values))


def elected(parts: list[Tensor], weights: list[Any]) -> Tensor:
    """The weighted mean of those that have the sign of the weighted sum, element by element."""
    weighed = [part * weight for part, weight in zip(parts, weights, strict=True)]
    return elect(weighed, weighed, weights, normalize=True)
