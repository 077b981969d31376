"""A tensor put together from runs of elements of others, as data."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from mergewise.checkpoint._dtypes import BITS
from mergewise.checkpoint._model import TensorRef
from mergewise.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + count` of a tensor, seen as flat."""

    ref: TensorRef
    start: int
    count: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.count == self.ref.numel


@dataclass(frozen=True)
class JoinedRef(TensorRef):
    """Pieces one after another: the packed experts of a mixture, say.

    Name, dtype and shape are the result's; `file` is the first piece's. `start` and `end` count
    the bytes of all pieces, not places in a file.
    """

    pieces: tuple[Piece, ...]

    def cut(self, start: int, view: memoryview) -> Iterator[tuple[TensorRef, int, memoryview]]:
        """What fills a buffer with bytes from `start` on: (tensor, first byte, part of buffer)."""
        end, item = start + view.nbytes, BITS[self.dtype] // 8
        if start < 0 or end > self.nbytes:
            raise ValueError(f"{self.name}: bytes {start} to {end} of {self.nbytes} asked for")
        for i in range(*self.touched(start // item, -(-end // item))):
            piece, at = self.pieces[i], self.starts[i] * item
            low, high = max(start, at), min(end, at + piece.count * item)
            first = piece.start * item + low - at
            yield piece.ref, first, view[low - start : high - start]

    @cached_property
    def starts(self) -> list[int]:
        """The element at which each piece begins, and behind the last one the number of all."""
        return [0, *accumulate(piece.count for piece in self.pieces)]

    def touched(self, start: int, end: int) -> tuple[int, int]:
        """Which pieces hold elements `start` to `end`: the first, and the one behind the last."""
        return bisect_right(self.starts, start) - 1, bisect_left(self.starts, end)

    @property
    def stored(self) -> bool:
        """Whether all pieces are bytes of files, so that none has to be computed."""
        return all(type(piece.ref) is TensorRef for piece in self.pieces)


def joined(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> TensorRef:
    """The tensor that pieces make up: one of the files' own where that suffices.

    Raises:
        CheckpointError: if they differ in type.
    """
    types = {piece.ref.dtype for piece in pieces}
    if len(types) > 1:
        raise CheckpointError(
            f"{name}: its parts are of different types, {' and '.join(sorted(types))} "
            f"({pieces[0].ref.name} and others); save that model in one type"
        )
    first = pieces[0]
    if len(pieces) == 1 and first.whole and first.ref.shape == shape:
        return replace(first.ref, name=name)
    bits = BITS[first.ref.dtype]
    if bits % 8:
        raise CheckpointError(f"{name}: parts of {first.ref.dtype} tensors cannot be read")
    if len(pieces) == 1 and type(first.ref) is TensorRef:
        start = first.ref.start + first.start * bits // 8
        size = first.count * bits // 8
        return TensorRef(name, first.ref.dtype, shape, start, start + size, first.ref.file)
    size = sum(piece.count for piece in pieces) * bits // 8
    return JoinedRef(name, first.ref.dtype, shape, 0, size, first.ref.file, tuple(pieces))
