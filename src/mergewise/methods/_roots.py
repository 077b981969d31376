"""Square roots that are the same compiled and in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root of a tensor's elements.

    `torch.sqrt` of float32 on the CPU may be off by one unit in the last place, where it is MKL's;
    C's `sqrtf` never is. By way of float64 torch's is right too.
    """
    if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
        return torch.sqrt(x.double()).float()
    return torch.sqrt(x)
