"""A tensor whose rows stand in the order of another vocabulary, put together as it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.constants import PLAIN_BLOCK_ELEMENTS
from mergewise.engine._sources import Source
from mergewise.engine._sources import _buffer as buffer
from mergewise.engine._work import Parallel, Range, Work
from mergewise.vocabulary import MEAN, OWN, PADDING, RowMap

if TYPE_CHECKING:
    from torch import Tensor

_NARROW = 8
"""Rows of at most so many elements are picked from whole planes instead of read one by one."""
_LEVEL = 1 << 20
"""Keeps the buffers of mapped rows apart from those of what they are read from."""


class RowsSource:
    """One tensor of a model in the order of the output's vocabulary; see `RowMap`.

    Runs of consecutive rows are read as ranges, so that a vocabulary that only grew costs no more
    than one that did not. Nothing but the block asked for is held, and the mean row if there is
    padding to fill.

    Args:
        own: the model's tensor.
        donors: tensors of other models, by their number in `rows`.
        axis: the vocabulary's.
        level: number of the stage that reads.
    """

    def __init__(
        self, own: Source, donors: Mapping[int, Source], rows: RowMap, axis: int, level: int
    ) -> None:
        self._sources = {**donors, OWN: own}
        self._rows = rows
        self._level = _LEVEL + level
        self._inner = math.prod(own.shape[axis + 1 :])
        self._outer = math.prod(own.shape[:axis])
        self._plane = rows.count * self._inner
        self._planes = {
            number: source.shape[axis] * self._inner
            for number, source in self._sources.items()
            if len(source.shape) > axis
        }
        self._mean: Tensor | None = None
        self.model = own.model
        self.name = own.name
        self.shape = (*own.shape[:axis], rows.count, *own.shape[axis + 1 :])
        self.dtype = self._type(own)

    def _type(self, own: Source) -> torch.dtype:
        types = {source.dtype for source in self._sources.values()}
        if torch.float64 in types:
            return torch.float64
        averaged = self._rows.counts["mean"] or self._rows.counts["padding"]
        return torch.float32 if len(types) > 1 or averaged else own.dtype

    def prepare(self) -> Work:
        for source in self._sources.values():
            yield from source.prepare()
        if self._rows.counts["padding"] and self._mean is None:
            step = max(1, PLAIN_BLOCK_ELEMENTS // self._inner)
            count = self._rows.tokens
            blocks = [(at, min(step, count - at)) for at in range(0, count, step)]
            pieces = [(outer, block) for outer in range(self._outer) for block in blocks]
            sums = yield Parallel(self._summed, pieces)
            each = len(blocks)
            mean = torch.zeros(self._outer, self._inner, dtype=torch.float64)
            for number, part in enumerate(sums):
                mean[number // each] += part
            self._mean = mean.div_(max(1, count)).to(self.dtype)

    def _summed(self, piece: tuple[int, Range]) -> Tensor:
        outer, (first, count) = piece
        start = outer * self._plane + first * self._inner
        block = self.read(start, count * self._inner, 0)
        return block.view(count, self._inner).double().sum(0)

    def read(self, start: int, size: int, slot: int) -> Tensor:
        raw = buffer((self._level, slot), size * self.dtype.itemsize)
        out = torch.frombuffer(raw, dtype=self.dtype)
        at = start
        while at < start + size:
            outer, first = divmod(at, self._plane)
            count = min(self._plane - first, start + size - at)
            self._fill(out[at - start : at - start + count], outer, first, slot)
            at += count
        return out

    def _fill(self, out: Tensor, outer: int, first: int, slot: int) -> None:
        """Elements of one plane (all rows at one place before the axis) from `first` on."""
        if self._inner <= _NARROW:
            self._pick(out, outer, first, slot)
            return
        last = first + out.numel()
        for number, row, begin, end in self._runs(first // self._inner, -(-last // self._inner)):
            low, high = max(first, begin * self._inner), min(last, end * self._inner)
            part = out[low - first : high - first]
            skip = low - begin * self._inner
            if number in self._sources:
                at = outer * self._planes[number] + row * self._inner + skip
                part.copy_(self._sources[number].read(at, high - low, slot))
            else:
                self._other(part, number, outer, begin, skip, slot)

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Rows `first` to `last` in runs: (whose, its first row, begin, end)."""
        import numpy as np

        which, rows = self._rows.plan
        whose, row = which[first:last], rows[first:last]
        breaks = np.flatnonzero((np.diff(whose) != 0) | (np.diff(row) != 1)) + 1
        edges = [0, *breaks.tolist(), last - first]
        for begin, end in pairwise(edges):
            yield int(whose[begin]), int(row[begin]), first + begin, first + end

    def _other(
        self, part: Tensor, number: int, outer: int, begin: int, skip: int, slot: int
    ) -> None:
        """Zeros, the mean row, or means of several models' rows."""
        part.zero_()
        if number not in (MEAN, PADDING):
            return
        at = 0
        while at < part.numel():
            row, inside = divmod(skip + at, self._inner)
            count = min(self._inner - inside, part.numel() - at)
            piece = part[at : at + count]
            if number == PADDING and self._mean is not None:
                piece.copy_(self._mean[outer, inside : inside + count])
            elif number == MEAN:
                piece.copy_(self._averaged(begin + row, outer, inside, count, slot))
            at += count

    def _averaged(self, row: int, outer: int, inside: int, count: int, slot: int) -> Tensor:
        pairs = self._rows.fills.means[row]
        total = torch.zeros(count, dtype=torch.float64)
        for number, theirs in pairs:
            at = outer * self._planes[number] + theirs * self._inner + inside
            total += self._sources[number].read(at, count, slot).double()
        return total / len(pairs)

    def _pick(self, out: Tensor, outer: int, first: int, slot: int) -> None:
        """As `_fill`, from whole planes: for biases, and where the vocabulary is the last axis."""
        which, rows = (torch.from_numpy(array) for array in self._rows.plan)
        elements = torch.arange(first, first + out.numel())
        row, inside = elements // self._inner, elements % self._inner
        whose, theirs = which[row], rows[row]
        out.zero_()
        for number in self._sources:
            hit = (whose == number).nonzero().view(-1)
            if len(hit):
                plane = self._read_plane(number, outer, slot)
                out[hit] = plane[theirs[hit] * self._inner + inside[hit]].to(self.dtype)
        if self._mean is not None:
            hit = (whose == PADDING).nonzero().view(-1)
            out[hit] = self._mean[outer, inside[hit]]
        for position in (whose == MEAN).nonzero().view(-1).tolist():
            at = int(inside[position])
            out[position] = self._averaged(int(row[position]), outer, at, 1, slot)[0]

    def _read_plane(self, number: int, outer: int, slot: int) -> Tensor:
        size = self._planes[number]
        return self._sources[number].read(outer * size, size, slot)
