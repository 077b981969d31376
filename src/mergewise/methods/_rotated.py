"""Rules for task vectors in coordinates that they share, in which elements mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._delta import elect
from mergewise.methods._select import kept_count

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 14
"""Elements that are merged at a time."""


def threshold(values: Tensor, density: float) -> float:
    """The magnitude that the share `density` of the elements reach; infinite for none."""
    count = kept_count(density, values.numel())
    if not count or not values.numel():
        return float("inf")
    return float(values.abs().flatten().kthvalue(values.numel() - count + 1).values)


def ties(
    parts: Sequence[Tensor], least: Sequence[float], weights: list[Any], rounded: bool = False
) -> Tensor:
    """TIES' rule: of the large elements, the weighted mean of those with the weighted sum's sign.

    Args:
        parts: of one shape; some rows are taken at a time.
        least: for each part, the magnitude that an element must reach.
        rounded: magnitudes count as rounded to float32.
    """
    out = torch.empty_like(parts[0])
    step = max(1, _PIECE // max(1, parts[0][:1].numel()))
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        pairs = zip(parts, least, strict=True)
        kept = [_trimmed(part[rows], limit, rounded) for part, limit in pairs]
        weighed = [part * weight for part, weight in zip(kept, weights, strict=True)]
        out[rows] = elect(weighed, weighed, weights, normalize=True)
    return out


def _trimmed(values: Tensor, least: float, rounded: bool) -> Tensor:
    size = values.float().abs() if rounded else values.abs()
    return torch.where(size >= least, values, torch.zeros_like(values))


def ties_room(size: int, experts: int) -> float:
    """How many numbers `threshold` or `ties` holds beside the parts, in float64."""
    return max(3.0 * size, size + 4.0 * (experts + 1) * min(size, _PIECE))
