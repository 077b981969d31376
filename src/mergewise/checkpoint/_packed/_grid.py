"""Codes times scales that lie on a grid over the matrix: most formats are this."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import Codes, Tall
from mergewise.checkpoint._packed._ref import Fill, Packing, taken
from mergewise.errors import CheckpointError, NotBuiltYetError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid(Packing):
    """(code - zero) * scale, the scale by blocks of ``block`` rows and columns.

    Attributes:
        codes: ``[*stack, rows, columns]``.
        scale: ``[*stack, ceil(rows / block[0]), ceil(columns / block[1])]``, or as many numbers
            in another shape. U8 and F8_E8M0 are exponents of two, plus 127.
        block: rows and columns that share a scale.
        zero: as the scale; None for zero.
        over: one number, or one for each of the stack, by which scales are divided.
        columns_of: int32, for each column the column of scales that it uses.
        divisor: of all scales.
        stated: I64, holds the shape of the codes; see `check`.
    """

    codes: Codes
    scale: TensorRef
    block: tuple[int, int]
    zero: TensorRef | Tall | None = None
    over: TensorRef | None = None
    columns_of: TensorRef | None = None
    divisor: float = 1.0
    stated: TensorRef | None = None

    @property
    def kind(self) -> str:
        return self.codes.kind

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        zero = self.zero.part if isinstance(self.zero, Tall) else self.zero
        every = (self.codes.part, self.scale, zero, self.over, self.columns_of, self.stated)
        return tuple(part for part in every if part is not None)

    @property
    def granule(self) -> int:
        return self.codes.shape[-1]

    def check(self, fill: Fill) -> None:
        if self.stated is None:
            return
        given = taken(fill, self.stated, 0, self.stated.numel).tolist()
        if given != list(self.codes.shape):
            raise NotBuiltYetError(
                f"{where(self.stated.file)}: {self.stated.name} says {shown(given)}, where the "
                f"packed tensor holds {list(self.codes.shape)}; rows padded to whole words cannot "
                "be read by this version"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Scales of one matrix: down, across."""
        return grid_of(self.codes.shape, self.block)

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        first, count = start // self.granule, size // self.granule
        value = self.codes.rows(first, count, fill)
        if self.zero is not None:
            self._each(value, self._zeros(first, count, fill), fill, torch.Tensor.sub_)
        self._each(value, self._scales(first, count, fill), fill, torch.Tensor.mul_)
        return value.view(-1)

    def _scales(self, first: int, count: int, fill: Fill) -> Tensor:
        exponents = self.scale.dtype in ("U8", "F8_E8M0")
        part = replace(self.scale, dtype="U8") if exponents else self.scale
        scales = self._rows_of(part, first, count, fill).float()
        if exponents:
            scales = scales.sub_(127).exp2_()
        if self.over is not None:
            over = taken(fill, self.over, 0, self.over.numel).float()
            if len(over) > 1:
                over = over[self._at(first, count) // self.codes.shape[-2]][:, None]
            scales = scales / over
        return scales if self.divisor == 1.0 else scales / self.divisor

    def _zeros(self, first: int, count: int, fill: Fill) -> Tensor:
        assert self.zero is not None
        if isinstance(self.zero, Tall):
            return self.zero.rows(first, count, fill)
        return self._rows_of(self.zero, first, count, fill).float()

    def _at(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count)

    def _rows_of(self, part: TensorRef, first: int, count: int, fill: Fill) -> Tensor:
        """For each row of codes its row of the grid, ``[count, across]``."""
        down, across = self.grid
        rows = self.codes.shape[-2]
        at = self._at(first, count)
        lines = at // rows * down + at % rows // self.block[0]
        low, high = int(lines[0]), int(lines[-1]) + 1
        found = taken(fill, part, low * across, (high - low) * across)
        return found.view(-1, across)[lines - low]

    def _each(self, value: Tensor, by: Tensor, fill: Fill, act: object) -> None:
        """Change each element by its block's number, in place."""
        assert callable(act)
        columns, width = value.shape[1], self.block[1]
        if self.columns_of is not None:
            act(value, by[:, self._order(self.columns_of, fill)])
        elif by.shape[1] == 1:
            act(value, by)
        elif columns % width == 0:
            act(value.view(len(value), -1, width), by[:, :, None])
        else:
            act(value, by.repeat_interleave(width, dim=1)[:, :columns])

    def _order(self, part: TensorRef, fill: Fill) -> Tensor:
        """Each column's column of scales; where any is unset (-1), as if there were no order."""
        columns, across = part.numel, self.grid[1]
        of = taken(fill, part, 0, columns).long()
        if bool((of == -1).any()):
            return torch.arange(columns) // self.block[1]
        if bool((of < 0).any()) or bool((of >= across).any()):
            raise CheckpointError(
                f"{where(part.file)}: {part.name} must hold numbers from 0 to {across - 1}, "
                f"got {int(of.min())} to {int(of.max())}; fetch it again"
            )
        return of


def grid_of(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks a matrix has, down and across."""
    return math.ceil(shape[-2] / block[0]), math.ceil(shape[-1] / block[1])
