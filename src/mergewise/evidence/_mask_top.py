"""The largest elements of many tensors together, exactly as many as asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import NonFiniteError
from mergewise.evidence.models._masked import Tensors, shape_of

if TYPE_CHECKING:
    from torch import Tensor


def largest(
    shapes: Mapping[str, tuple[int, ...]], value: Callable[[str], Tensor], count: int
) -> dict[str, Tensor]:
    """Masks (bool, by tensor) of the `count` largest elements; of equal ones, the first.

    Args:
        shapes: of all tensors, in the order that decides between equal elements.
        value: a tensor's elements, float32 on the CPU; each is asked for once or
            twice.
    """
    import numpy as np

    total = sum(math.prod(shape) for shape in shapes.values())
    if count in (0, total):
        for name in shapes:  # whoever gives them looks for NaN
            value(name)
        return {n: torch.full(shape, count > 0, dtype=torch.bool) for n, shape in shapes.items()}
    everything, start = np.empty(total, np.float32), 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        everything[start : start + size] = value(name).flatten().numpy()
        start += size
    everything.partition(total - count)
    least = float(everything[total - count])
    equal = count - int((everything[total - count :] > least).sum())
    del everything
    masks = {}
    for name in shapes:
        found = value(name)
        mask = found > least
        ties = (found == least).flatten().nonzero().flatten()[:equal]
        mask.view(-1)[ties] = True
        equal -= len(ties)
        masks[name] = mask
    return masks


def largest_changes(
    base: Tensors, expert: Tensors, tensors: Collection[str], density: float
) -> dict[str, Tensor]:
    """Masks of the largest |expert - base| over all `tensors` together.

    Exactly ``round(density * elements)`` are chosen. (The official code takes those above the
    k-th largest, one fewer.)

    Raises:
        NonFiniteError: if a change is NaN or infinite.
    """
    shapes = {name: shape_of(base, name) for name in sorted(tensors)}
    total = sum(math.prod(shape) for shape in shapes.values())

    def change(name: str) -> Tensor:
        found = (expert[name].cpu() - base[name].cpu()).abs().float().contiguous()
        if not bool(found.isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or infinity in the base or in the expert")
        return found

    return largest(shapes, change, round(density * total))


def at_most(logits: Mapping[str, Tensor], most: float) -> dict[str, Tensor]:
    """Masks of the positive logits; of more than a share `most` of all, only the highest."""
    masks = {name: value > 0 for name, value in logits.items()}
    count = round(most * sum(mask.numel() for mask in masks.values()))
    if sum(int(mask.sum()) for mask in masks.values()) <= count:
        return masks
    shapes = {name: tuple(value.shape) for name, value in logits.items()}
    found = largest(shapes, lambda name: logits[name].float().cpu().contiguous(), count)
    return {name: mask.to(masks[name].device) for name, mask in found.items()}
