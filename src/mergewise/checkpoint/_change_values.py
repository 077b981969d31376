"""The arithmetic of `_change`, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint._change import ChangedRef, LowRank, Scaled, Shifted
from mergewise.checkpoint._dtypes import TORCH_NAMES
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed import PackedRef
from mergewise.checkpoint._read import FileReader

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[TensorRef], "Tensor"]
"""Gives a tensor of a file, whole, as stored."""

TILE = 1 << 17
"""Elements computed at a time: they stay in the processor's cache until they are rounded."""


class ChangeValues:
    """A tensor's change with its numbers in memory: float32, float64 for a base of float64.

    For DoRA, `squares` must see every row of the base once, and `set_norms` what it gave, before
    `apply` is called.

    Args:
        read: reads the adapter's tensors.
    """

    def __init__(self, ref: ChangedRef, read: Read) -> None:
        self.dtype = torch.float64 if ref.dtype == "F64" else torch.float32
        self.rows = ref.shape[0] if ref.shape else 1
        self.columns = max(1, math.prod(ref.shape[1:]))
        change = ref.change
        self._left: Tensor | None = None
        self._right: Tensor | None = None
        self._shift: Tensor | None = None
        self._factor: Tensor | None = None
        self._magnitude: Tensor | None = None
        self._by_row = True

        def number(part: TensorRef) -> Tensor:
            return read(part).to(self.dtype)

        if isinstance(change, LowRank):
            self._factors(change, number)
        elif isinstance(change, Scaled):
            self._factor, self._by_row = number(change.by).reshape(-1), change.by_row
        elif isinstance(change, Shifted):
            self._shift = number(change.by).reshape(-1) * change.scale

    def _factors(self, change: LowRank, number: Callable[[TensorRef], Tensor]) -> None:
        a = number(change.a).reshape(change.rank, -1)
        b = number(change.b).reshape(-1, change.rank)
        if change.middle is not None:
            b = b * number(change.middle).reshape(-1)
        left, right = (a.T, b.T) if change.turned else (b, a)
        self._left = (left * change.scale).contiguous()
        self._right = right.contiguous()
        if change.magnitude is not None:
            self._by_row = not change.turned
            self._magnitude = number(change.magnitude).reshape(-1)
            self._norms: Tensor | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """``[rows, rank]`` and ``[rank, columns]``, if adding their product is all there is."""
        if self._left is None or self._right is None or self._magnitude is not None:
            return None
        return self._left, self._right

    @property
    def wants_squares(self) -> bool:
        """Whether norms of the changed weight are needed first (DoRA)."""
        return self._magnitude is not None and self._factor is None

    def squares(self, base: Tensor, start: int) -> tuple[int, Tensor]:
        """Sums of squares of some whole rows of the changed weight, before it is normed.

        Args:
            base: the rows, flat.
            start: the first one's first element in the whole tensor.

        Returns:
            The first row, and float64 sums: one a row, or one a column.
        """
        first = start // self.columns
        value = self._sum(torch.empty(base.shape, dtype=self.dtype), base, start)
        value = value.view(-1, self.columns).double().square_()
        return first, value.sum(dim=1 if self._by_row else 0)

    def set_norms(self, parts: list[tuple[int, Tensor]]) -> None:
        """Take what `squares` gave for all rows."""
        assert self._magnitude is not None
        if self._by_row:
            total = torch.cat([sums for _, sums in sorted(parts, key=lambda part: part[0])])
        else:
            total = torch.stack([sums for _, sums in parts]).sum(dim=0)
        self._factor = self._magnitude / total.sqrt().to(self.dtype)

    def apply(self, base: Tensor, start: int, out: Tensor | None = None) -> Tensor:
        """Elements `start` to `start + len(base)` of the result, flat; `base` is not changed.

        Args:
            out: where they go, of the same length; by default a new tensor of `dtype`. Of a
                narrower type, each is computed in `dtype` and rounded once.
        """
        result = torch.empty(base.shape, dtype=self.dtype) if out is None else out
        apart = result.dtype != self.dtype
        room = torch.empty(min(len(base), self._tile) if apart else 0, dtype=self.dtype)
        for first, last in self._tiles(start, len(base)):
            part = slice(first - start, last - start)
            value = room[: last - first] if apart else result[part]
            self._fill(value, base[part], first)
            if apart:
                result[part].copy_(value)
        return result

    @property
    def _tile(self) -> int:
        return max(1, TILE // self.columns) * self.columns

    def _tiles(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """Some whole rows each, the same ones wherever a block begins, cut at its ends."""
        at, step, end = start, self._tile, start + size
        while at < end:
            following = min(end, (at // step + 1) * step)
            yield at, following
            at = following

    def _fill(self, value: Tensor, base: Tensor, start: int) -> None:
        self._sum(value, base, start)
        if self._factor is not None:
            value.mul_(self._spread(self._factor, start, base.numel()))

    def _sum(self, value: Tensor, base: Tensor, start: int) -> Tensor:
        """Make `value` the base with what is added, before it is normed or scaled."""
        value.copy_(base)
        if self._left is not None:
            self._add_product(value, start)
        elif self._shift is not None:
            value.add_(self._shift[start : start + len(base)])
        return value

    def _add_product(self, value: Tensor, start: int) -> None:
        """Add the same elements of left @ right: of a piece of a row, whole rows, and a piece."""
        assert self._left is not None and self._right is not None
        end = start + len(value)
        rows = (-(-start // self.columns), end // self.columns)
        if rows[0] > rows[1]:  # within one row
            return self._add_piece(value, start)
        head, tail = rows[0] * self.columns - start, end - rows[1] * self.columns
        if head:
            self._add_piece(value[:head], start)
        if rows[0] < rows[1]:
            whole = value[head : len(value) - tail].view(-1, self.columns)
            whole.addmm_(self._left[slice(*rows)], self._right)
        if tail:
            self._add_piece(value[-tail:], end - tail)

    def _add_piece(self, value: Tensor, start: int) -> None:
        """The same within one row."""
        assert self._left is not None and self._right is not None
        row, offset = divmod(start, self.columns)
        value.addmv_(self._right[:, offset : offset + len(value)].T, self._left[row])

    def _spread(self, factor: Tensor, start: int, size: int) -> Tensor:
        """The factor of each element."""
        first, offset = divmod(start, self.columns)
        last = -(-(start + size) // self.columns)
        if self._by_row:
            spread = factor[first:last].repeat_interleave(self.columns)
        else:
            spread = factor.repeat(last - first)
        return spread[offset : offset + size]


def read_whole(reader: FileReader, ref: TensorRef) -> Tensor:
    """A whole tensor of a file, as stored, in its own shape; for where memory has room for it.

    A quantised one comes as the float32 numbers that it stands for.
    """
    if isinstance(ref, PackedRef):
        ref.packing.check(reader.read_into)
        return ref.values(0, ref.numel, reader.read_into).reshape(ref.shape)
    buffer = torch.empty(ref.nbytes, dtype=torch.uint8)
    reader.read_into(ref, 0, buffer.numpy().data)
    return buffer.view(getattr(torch, TORCH_NAMES[ref.dtype])).reshape(ref.shape)


def changed_whole(ref: ChangedRef, read: Read) -> Tensor:
    """A whole changed tensor, in its own shape; for where memory has room for it.

    Args:
        read: reads a tensor of the base or of the adapter.
    """
    values = ChangeValues(ref, read)
    base = read(ref.stored).reshape(-1)
    if values.wants_squares:
        values.set_norms([values.squares(base, 0)])
    return values.apply(base, 0).reshape(ref.shape)
