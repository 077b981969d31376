"""Where statistics add up: in memory, or in one file with a matrix at a time in memory."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import cannot_write, write_at
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Sums

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 22
"""Elements added at a time in a file."""


class StoredSums(Sums):
    """Sums that can be read back.

    Numbers and vectors are added in float64, larger tensors in float32.

    Args:
        float64: add everything in float64.

    Attributes:
        counts: by tensor, then unit.
    """

    def __init__(self, float64: bool = False) -> None:
        self.float64 = float64
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def count(self, tensor: str, amount: int, unit: str = "tokens") -> None:
        self.counts[tensor][unit] += int(amount)

    @abstractmethod
    def held(self) -> list[tuple[str, str]]:
        """(tensor, sum) of everything added."""

    @abstractmethod
    def get(self, tensor: str, name: str) -> Tensor:
        """A sum, on the CPU."""

    @abstractmethod
    def shape(self, tensor: str, name: str) -> tuple[int, ...]:
        """The shape of a sum."""

    def dtype(self, shape: tuple[int, ...]) -> torch.dtype:
        """In which type tensors of this shape are added."""
        return torch.float64 if self.float64 or len(shape) < 2 else torch.float32

    def pieces(self, tensor: str, name: str) -> Iterator[Tensor]:
        """A sum, flat, in parts of bounded size."""
        yield from torch.split(self.get(tensor, name).flatten(), _PIECE)

    def close(self) -> None:
        """Free what is held."""

    def _same(self, tensor: str, name: str, value: Tensor) -> None:
        known = self.shape(tensor, name)
        if known != tuple(value.shape):
            raise EvidenceError(
                f"{tensor}: the sum {name} has shape {list(known)}, got {list(value.shape)}; "
                "a statistic must add tensors of one shape"
            )


class MemorySums(StoredSums):
    """Sums in memory.

    Args:
        device: where; by default that of the values added first.
    """

    def __init__(self, float64: bool = False, device: str | None = None) -> None:
        super().__init__(float64)
        self._device = device
        self._held: dict[tuple[str, str], Tensor] = {}

    def add(self, tensor: str, name: str, value: Tensor) -> None:
        held = self._held.get((tensor, name))
        if held is None:
            wanted = self.dtype(tuple(value.shape))
            where = self._device or value.device
            self._held[tensor, name] = value.detach().to(where, wanted, copy=True)
            return
        self._same(tensor, name, value)
        held.add_(value.detach().to(held.device))

    def held(self) -> list[tuple[str, str]]:
        return list(self._held)

    def get(self, tensor: str, name: str) -> Tensor:
        return self._held[tensor, name].cpu()

    def shape(self, tensor: str, name: str) -> tuple[int, ...]:
        return tuple(self._held[tensor, name].shape)


class DiskSums(MemorySums):
    """Vectors in memory, larger sums in a file without a name, added to in place.

    Args:
        folder: on which disk; the file vanishes with the process.

    Raises:
        OutputError: if the file cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, float64: bool = False) -> None:
        super().__init__(float64, "cpu")
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._places: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = {}
        self._end = 0

    def add(self, tensor: str, name: str, value: Tensor) -> None:
        if value.dim() < 2:
            super().add(tensor, name, value)
            return
        value = value.detach()
        new = (tensor, name) not in self._places
        if new:
            self._places[tensor, name] = (self._end, tuple(value.shape))
            self._end += value.numel() * self.dtype(tuple(value.shape)).itemsize
        self._same(tensor, name, value)
        try:
            self._add_at(self._places[tensor, name][0], value, new)
        except OSError as error:
            raise cannot_write(self._folder, error) from None

    def held(self) -> list[tuple[str, str]]:
        return [*super().held(), *self._places]

    def get(self, tensor: str, name: str) -> Tensor:
        if (tensor, name) not in self._places:
            return super().get(tensor, name)
        shape = self._places[tensor, name][1]
        return torch.cat(list(self.pieces(tensor, name))).reshape(shape)

    def shape(self, tensor: str, name: str) -> tuple[int, ...]:
        place = self._places.get((tensor, name))
        return place[1] if place else super().shape(tensor, name)

    def pieces(self, tensor: str, name: str) -> Iterator[Tensor]:
        if (tensor, name) not in self._places:
            yield from super().pieces(tensor, name)
            return
        start, shape = self._places[tensor, name]
        kind, total = self.dtype(shape), torch.Size(shape).numel()
        for first in range(0, total, _PIECE):
            count = min(_PIECE, total - first)
            yield self._read(start + first * kind.itemsize, count, kind)

    def close(self) -> None:
        self._file.close()

    def _add_at(self, start: int, value: Tensor, new: bool) -> None:
        kind = self.dtype(tuple(value.shape))
        flat = value.reshape(-1)
        for first in range(0, len(flat), _PIECE):
            piece = flat[first : first + _PIECE].to("cpu", kind)
            offset = start + first * kind.itemsize
            if not new:
                piece = self._read(offset, len(piece), kind).add_(piece)
            write_at(self._file.fileno(), piece.contiguous().numpy().data, offset)

    def _read(self, offset: int, count: int, kind: torch.dtype) -> Tensor:
        buffer = bytearray(count * kind.itemsize)
        view = memoryview(buffer)
        while view.nbytes:
            done = os.preadv(self._file.fileno(), [view], offset)
            if done == 0:
                raise EvidenceError("the temporary file of sums became shorter; run again")
            view, offset = view[done:], offset + done
        return torch.frombuffer(buffer, dtype=kind)
