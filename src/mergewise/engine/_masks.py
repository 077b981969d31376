"""Masks of a tensor's blocks, kept as bits from one pass to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine._work import Range

if TYPE_CHECKING:
    from torch import Tensor


class MaskCache:
    """Masks by block. The pass that sums a method's terms puts them in, the pass that merges takes
    them out, so that the ranks they were made of are found once. Safe to share between threads:
    a block is worked on by one at a time."""

    def __init__(self) -> None:
        self._packed: dict[Range, list[Any]] = {}

    def put(self, where: Range, masks: list[Tensor]) -> None:
        import numpy as np

        self._packed[where] = [np.packbits(mask.numpy()) for mask in masks]

    def take(self, where: Range) -> list[Tensor] | None:
        """The masks of a block, bool and flat; None if they were not put in."""
        import numpy as np

        packed = self._packed.pop(where, None)
        if packed is None:
            return None
        flags = [np.unpackbits(bits, count=where[1]).view(np.bool_) for bits in packed]
        return [torch.from_numpy(flag) for flag in flags]
