"""A tensor put together from runs of elements of others, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mergewise.checkpoint._dtypes import BITS
from mergewise.checkpoint._folder import TensorRef
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
        end, at = start + view.nbytes, 0
        if start < 0 or end > self.nbytes:
            raise ValueError(f"{self.name}: bytes {start} to {end} of {self.nbytes} asked for")
        for piece in self.pieces:
            offset, size = (n * BITS[self.dtype] // 8 for n in (piece.start, piece.count))
            low, high = max(start, at), min(end, at + size)
            if low < high:
                yield piece.ref, offset + low - at, view[low - start : high - start]
            at += size

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
    if len(pieces) == 1 and type(first.ref) is TensorRef and not first.start * bits % 8:
        start = first.ref.start + first.start * bits // 8
        size = first.count * bits // 8
        return TensorRef(name, first.ref.dtype, shape, start, start + size, first.ref.file)
    size = sum(piece.count for piece in pieces) * bits // 8
    return JoinedRef(name, first.ref.dtype, shape, 0, size, first.ref.file, tuple(pieces))
