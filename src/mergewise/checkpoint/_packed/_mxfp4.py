"""The experts of gpt-oss: pairs of E2M1 with an exponent for 32, stored turned.

``NAME_blocks [experts, outputs, groups, 16]`` and ``NAME_scales [experts, outputs, groups]`` stand
for ``NAME [experts, 32 * groups, outputs]``. Source: `transformers`' mxfp4 integration; OCP
Microscaling Formats 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import fp4
from mergewise.checkpoint._packed._find import Search
from mergewise.checkpoint._packed._ref import Fill, Packing, strided

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mxfp4(Packing):
    """A stack of matrices ``[32 * groups, outputs]``."""

    blocks: TensorRef
    scales: TensorRef

    @property
    def kind(self) -> str:
        return "MXFP4"

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        return (self.blocks, self.scales)

    @property
    def granule(self) -> int:
        return 32 * self.blocks.shape[1]

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        first, count = start // self.granule, size // self.granule
        groups = self.blocks.shape[2]
        found = []
        while count > 0:
            expert, at = divmod(first, groups)
            some = min(count, groups - at)
            found.append(self._within(expert, at, some, fill))
            first, count = first + some, count - some
        return torch.cat(found)

    def _within(self, expert: int, at: int, count: int, fill: Fill) -> Tensor:
        _, outputs, groups, _ = self.blocks.shape
        first = expert * outputs * groups + at
        packed = strided(fill, self.blocks, 16 * first, 16 * count, 16 * groups, outputs)
        exponents = strided(fill, self.scales, first, count, groups, outputs)
        values = fp4(packed.reshape(-1)).view(outputs, count, 32)
        values = values * (exponents.float() - 127).exp2()[:, :, None]
        return values.view(outputs, -1).T.reshape(-1)


def find_mxfp4(search: Search) -> None:
    """Every pair of blocks and scales."""
    for name, blocks in search.tensors.items():
        if not name.endswith("_blocks"):
            continue
        stem = name.removesuffix("_blocks")
        scales = search.need(f"{stem}_scales", name)
        search.check(blocks, ("U8",))
        if len(blocks.shape) != 4 or blocks.shape[3] != 16:
            search.refuse(name, f"has shape {list(blocks.shape)}, expected [*, *, *, 16]")
        search.check(scales, ("U8",), blocks.shape[:3])
        experts, outputs, groups, _ = blocks.shape
        search.add(stem, (experts, 32 * groups, outputs), Mxfp4(blocks, scales))
