"""Copy a band of rows from another model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs
from mergewise.methods._matrix import PlacedMethod, by_matrix
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


def region(width: float, offset: float, rows: int, like: Tensor) -> Tensor:
    """Which of `rows` rows lie in a band that may run over the end and on from the start."""
    row = torch.arange(rows, device=like.device)
    start, end = offset * rows, (offset + width) * rows
    if offset + width <= 1:
        return (row >= round(start)) & (row < round(end))
    return (row >= round(start)) | (row < round(end - rows))


def _copied(pair: list[Tensor], s: Settings) -> Tensor:
    base, expert = pair
    band = region(s.width, s.offset, len(base), base)
    return torch.where(band[:, None], expert, base)


class CopyRegion(PlacedMethod):
    """The same share of every tensor's outputs comes from the expert, bit by bit.

    A matrix's rows are its outputs, a vector's elements are rows; of experts stacked in one
    tensor the band is taken in each. A tensor without axes is the expert's if `width` is above
    one half.
    """

    name = "copy_region"
    summary = "takes a band of each tensor's rows from another model"
    advice = (
        "To take a band of rows from another model, for experiments. Rows are neurons without "
        "an order, so the cut is arbitrary."
    )
    family = "arithmetic"
    experts = (1, 1)
    formula = "x in rows [offset n, (offset + width) n) mod n, b elsewhere"
    source = "tensor sum of the diffusion community (sd-mecha, ljleb)"
    variant = (
        "sd-mecha 1.1.5's tensor_sum for width and offset in [0, 1]; its top-k form is not here"
    )
    symmetric = False
    params = {
        "width": Param(float, 0.5, "share of the rows to take", ge=0, le=1, native=True),
        "offset": Param(float, 0.0, "where the band begins, as a share", ge=0, lt=1, native=True),
    }
    example = """
merge_method: copy_region
base_model: base
models:
  - model: expert_a
parameters: {width: 0.5, offset: 0.25}
"""

    def access(self, p: Settings) -> Access:
        return Access.WHOLE

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        return 1.0 * math.prod(shape)

    def mixture(self, p: Settings, base: bool, experts: int) -> list[float]:
        return [1.0 - p.width, p.width] if base else super().mixture(p, base, experts)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        base, expert = x.base, x.experts[0]
        if not base.dim():
            return expert.clone() if s.width > 0.5 else base.clone()
        if base.dim() == 1:
            band = region(s.width, s.offset, len(base), base)
            return torch.where(band, expert, base)
        return by_matrix([base, expert], s, lambda pair: _copied(pair, s))
