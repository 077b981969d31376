"""A tensor that is stored in fewer bits than it has, and how such bytes are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint._dtypes import BITS, TORCH_NAMES
from mergewise.checkpoint._model import TensorRef

if TYPE_CHECKING:
    from torch import Tensor

Fill = Callable[[TensorRef, int, memoryview], None]
"""Fills a buffer with a tensor's bytes from a byte of it on, as `FileReader.read_into` does."""


class Packing(ABC):
    """How numbers are made of what is stored; one subclass a format, all of it data."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the stored type is called, such as ``Q4_K``."""

    @property
    @abstractmethod
    def parts(self) -> tuple[TensorRef, ...]:
        """The stored tensors: codes, scales, zero points."""

    @property
    @abstractmethod
    def granule(self) -> int:
        """Elements of the result that can only be read together; a tensor is cut at multiples."""

    def check(self, fill: Fill) -> None:
        """Raise for what headers do not show, before the first block is read."""
        return None

    @abstractmethod
    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        """Elements `start` to `start + size` of the flat result, float32, in memory of their own.

        Args:
            start: a multiple of `granule`.
            size: another, or what is left.
            fill: reads the stored tensors.
        """


@dataclass(frozen=True)
class PackedRef(TensorRef):
    """A tensor that is computed from packed numbers.

    Name, dtype and shape are the result's; file, start and end are those of its codes. What reads
    bytes refuses it (`FileReader.read_into`).
    """

    packing: Packing

    @property
    def nbytes(self) -> int:
        """Bytes as stored, of all parts."""
        return sum(part.nbytes for part in self.packing.parts)

    @property
    def stored_as(self) -> str | None:
        return self.packing.kind

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        """Elements `start` to `start + size`, flat, float32: those around them are computed too."""
        granule = self.packing.granule
        first = start - start % granule
        last = min(-(-(start + size) // granule) * granule, self.numel)
        return self.packing.values(first, last - first, fill)[start - first : start - first + size]


def packed_ref(name: str, dtype: str, shape: tuple[int, ...], packing: Packing) -> PackedRef:
    """The tensor that `packing` describes."""
    codes = packing.parts[0]
    return PackedRef(name, dtype, shape, codes.start, codes.end, codes.file, packing)


def taken(fill: Fill, part: TensorRef, start: int, count: int) -> Tensor:
    """Elements `start` to `start + count` of a stored tensor, flat, in its own type."""
    return strided(fill, part, start, count, 0, 1)[0]


def strided(fill: Fill, part: TensorRef, first: int, width: int, stride: int, count: int) -> Tensor:
    """`count` runs of `width` elements each, whose first ones lie `stride` apart: [count, width].

    What lies between them is not read.
    """
    item = BITS[part.dtype] // 8
    buffer = bytearray(width * count * item)
    view = memoryview(buffer)
    for i in range(count):
        run = view[i * width * item : (i + 1) * width * item]
        fill(part, (first + i * stride) * item, run)
    kind = getattr(torch, TORCH_NAMES[part.dtype])
    return torch.frombuffer(buffer, dtype=kind).view(count, width)
