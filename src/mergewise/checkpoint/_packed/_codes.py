"""Rows of small numbers, as formats lay them out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._ref import Fill, taken

if TYPE_CHECKING:
    from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen numbers of four-bit floating point. Source: OCP Microscaling Formats 1.0, 5.3.3."""


class Codes(ABC):
    """A stored matrix, or a stack of them, of codes: ``[*stack, rows, columns]``.

    Attributes:
        part: where they lie.
        kind: what the type is called.
        shape: of the codes, each counted once.
    """

    part: TensorRef
    kind: str
    shape: tuple[int, ...]

    @abstractmethod
    def rows(self, first: int, count: int, fill: Fill) -> Tensor:
        """Rows as float32, ``[count, columns]``, counted through the stack."""


@dataclass(frozen=True)
class Plain(Codes):
    """One code an element: integers, or floating point of eight bits."""

    part: TensorRef
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.part.shape

    def rows(self, first: int, count: int, fill: Fill) -> Tensor:
        columns = self.shape[-1]
        codes = taken(fill, self.part, first * columns, count * columns)
        return codes.view(count, columns).float()


@dataclass(frozen=True)
class Pairs(Codes):
    """Two E2M1 numbers a byte along the columns, the first in the low bits."""

    part: TensorRef
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.part.shape[:-1], 2 * self.part.shape[-1])

    def rows(self, first: int, count: int, fill: Fill) -> Tensor:
        width = self.part.shape[-1]
        packed = taken(fill, self.part, first * width, count * width)
        return fp4(packed).view(count, 2 * width)


def fp4(packed: Tensor) -> Tensor:
    """The numbers in bytes of two, flat."""
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).view(-1)
    return torch.tensor(E2M1)[codes.int()]


@dataclass(frozen=True)
class Words(Codes):
    """Integers of `bits` bits in 32-bit words along the columns, the first in the lowest bits.

    They are stored plus half their range. Bits run on from word to word; a row begins a new word.

    Source: compressed-tensors' `pack-quantized`.
    """

    part: TensorRef
    kind: str
    bits: int
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.part.shape[:-1], self.columns)

    def rows(self, first: int, count: int, fill: Fill) -> Tensor:
        width = self.part.shape[-1]
        words = taken(fill, self.part, first * width, count * width).view(count, width)
        return unpacked(words, self.bits, self.columns).float().sub_(1 << (self.bits - 1))


@dataclass(frozen=True)
class Tall:
    """Integers packed as in `Words`, but down the rows: zero points, ``[*stack, words, columns]``.

    Attributes:
        height: rows of one matrix, each counted once.
    """

    part: TensorRef
    bits: int
    height: int

    def rows(self, first: int, count: int, fill: Fill) -> Tensor:
        """Rows as float32, ``[count, columns]``, counted through the stack."""
        found = []
        while count > 0:
            matrix, at = divmod(first, self.height)
            some = min(count, self.height - at)
            found.append(self._within(matrix, at, some, fill))
            first, count = first + some, count - some
        return torch.cat(found)

    def _within(self, matrix: int, at: int, count: int, fill: Fill) -> Tensor:
        words, columns = self.part.shape[-2:]
        skipped = at // 32 * 32  # 32 integers fill whole words, whatever their bits
        low = skipped * self.bits // 32
        high = min(words, -(-(at + count) * self.bits // 32))
        run = taken(fill, self.part, (matrix * words + low) * columns, (high - low) * columns)
        codes = unpacked(run.view(-1, columns).T, self.bits, at - skipped + count)
        return codes.T[at - skipped :].float().sub_(1 << (self.bits - 1))


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """The unsigned integers in the rows of int32 `words`: ``[rows, columns]``."""
    if 8 % bits == 0:
        parts = words.reshape(-1).view(torch.uint8)
        mask = (1 << bits) - 1
        codes = torch.stack([parts >> at & mask for at in range(0, 8, bits)], dim=-1)
        return codes.view(len(words), -1)[:, :columns]
    at = torch.arange(columns) * bits
    wide = words.long() & 0xFFFFFFFF
    low, shift = at // 32, at % 32
    high = (low + 1).clamp_(max=words.shape[1] - 1)
    both = wide[:, low] | wide[:, high] << 32
    return both >> shift & ((1 << bits) - 1)
