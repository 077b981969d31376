"""Tensors of GGUF files, by blocks of rows; gguf-py computes quantised ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint._dtypes import TORCH_NAMES
from mergewise.checkpoint._gguf._types import GgmlType
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed import Fill, Packing, strided
from mergewise.errors import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ggml(Packing):
    """A tensor of a GGUF file, or some of its rows.

    Attributes:
        stored: the bytes, as U8.
        type: how they are to be understood.
        columns: elements of a row.
        halves: rows of half a head, if the rows of each head are interleaved for rotary positions
            (row ``i`` of the first half, row ``i`` of the second, row ``i + 1`` of the first ...);
            0 if they are in order.
        shift: what is added to each element.
    """

    stored: TensorRef
    type: GgmlType
    columns: int
    halves: int = 0
    shift: float = 0.0

    @property
    def kind(self) -> str:
        return self.type.name

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        return (self.stored,)

    @property
    def granule(self) -> int:
        return self.columns if self.halves else self.type.block

    def check(self, fill: Fill) -> None:
        if not self.type.stored:
            _quants()

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        raw = self._ordered(start, size, fill) if self.halves else self._run(start, size, fill)
        value = self._numbers(raw)
        return value.add_(self.shift) if self.shift else value

    def _run(self, start: int, size: int, fill: Fill) -> Tensor:
        first, width = self._bytes(start), self._bytes(size)
        return strided(fill, self.stored, first, width, 0, 1)

    def _ordered(self, start: int, size: int, fill: Fill) -> Tensor:
        """Rows in the order of the result: of a head the even ones, then the odd ones."""
        width = self._bytes(self.columns)
        first, last = start // self.columns, (start + size) // self.columns
        runs = []
        while first < last:
            half, i = divmod(first, self.halves)
            count = min(last - first, self.halves - i)
            head, odd = divmod(half, 2)
            at = 2 * (head * self.halves + i) + odd
            runs.append(strided(fill, self.stored, at * width, width, 2 * width, count))
            first += count
        return torch.cat(runs)

    def _bytes(self, elements: int) -> int:
        return elements // self.type.block * self.type.size

    def _numbers(self, raw: Tensor) -> Tensor:
        if self.type.stored:
            kind = getattr(torch, TORCH_NAMES[self.type.stored])
            return raw.view(kind).to(torch.float32, copy=True).view(-1)
        import numpy as np

        gguf, quants = _quants()
        kind = getattr(gguf.GGMLQuantizationType, self.type.name)
        # as one row: gguf-py works through rows in Python
        with np.errstate(all="ignore"):  # a NaN is told of by the engine, with the tensor's name
            found = quants.dequantize(raw.reshape(1, -1).numpy(), kind)
        return torch.from_numpy(found).view(-1)


def _quants() -> tuple[Any, Any]:
    try:
        import gguf
        from gguf import quants
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    return gguf, quants
