"""Where a task's inputs come from: anything that gives a run of elements of one tensor."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mergewise._lazy import torch
from mergewise.checkpoint import (
    TORCH_NAMES,
    ChangedRef,
    ChangeValues,
    FileReader,
    JoinedRef,
    PackedRef,
    TensorRef,
)
from mergewise.constants import PLAIN_BLOCK_ELEMENTS
from mergewise.engine._kernels import finite
from mergewise.engine._low_rank import compute
from mergewise.engine._work import Parallel, Range, Work
from mergewise.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """One tensor of one model, read by ranges of elements.

    Attributes:
        model: how the model is called in messages.
        name: the tensor's name in that model.
    """

    model: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def prepare(self) -> Work:
        """What must be known before the first read."""

    def read(self, start: int, size: int, slot: int) -> Tensor:
        """Elements `start` to `start + size`, flat, as stored.

        The result may live in a buffer that the next read with the same `slot` on the same
        thread reuses; it must not be changed.
        """


class _Ready:
    """A source that can be read at once."""

    def prepare(self) -> Work:
        yield from ()


class TensorSource(_Ready):
    """A tensor in memory."""

    def __init__(self, model: str, name: str, tensor: Tensor) -> None:
        self.model = model
        self.name = name
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self._flat = tensor.detach().reshape(-1)

    def read(self, start: int, size: int, slot: int) -> Tensor:
        return self._flat[start : start + size]


_buffers = threading.local()


def _buffer(key: tuple[int, int], size: int) -> memoryview:
    """This thread's buffer for one input, reused from block to block."""
    kept: dict[tuple[int, int], bytearray] = _buffers.__dict__.setdefault("kept", {})
    if len(kept.get(key, b"")) < size:
        kept[key] = bytearray(size)
    return memoryview(kept[key])[:size]


class FileSource(_Ready):
    """A tensor in a file, read by ranges.

    Args:
        level: number of the stage that reads, so that nested reads keep their buffers apart.
    """

    def __init__(self, model: str, ref: TensorRef, reader: FileReader, level: int) -> None:
        self.model = model
        self.name = ref.name
        self.shape = ref.shape
        self.dtype: torch.dtype = getattr(torch, TORCH_NAMES[ref.dtype])
        self._ref = ref
        self._reader = reader
        self._level = level

    def read(self, start: int, size: int, slot: int) -> Tensor:
        item = self.dtype.itemsize
        buffer = _buffer((self._level, slot), size * item)
        self._reader.read_into(self._ref, start * item, buffer)
        return torch.frombuffer(buffer, dtype=self.dtype)


class PackedSource(_Ready):
    """A quantised tensor, dequantised block by block as it is read; see `Packing`.

    Blocks come in float32, unrounded.
    """

    def __init__(self, model: str, ref: PackedRef, reader: FileReader) -> None:
        self.model = model
        self.name = ref.name
        self.shape = ref.shape
        self.dtype = torch.float32
        self._ref = ref
        self._reader = reader

    def prepare(self) -> Work:
        self._ref.packing.check(self._reader.read_into)
        yield from ()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        return self._ref.values(start, size, self._reader.read_into)


class ChangedSource:
    """A tensor that an adapter changes, computed block by block as it is read; see `ChangeValues`.

    Blocks are computed in float32 (float64 for a base of float64), and come unrounded or rounded
    once to `dtype`. The adapter's matrices are held in memory from `prepare` on.

    Args:
        fuse: allow a compiled loop.
    """

    def __init__(
        self,
        model: str,
        ref: ChangedRef,
        reader: FileReader,
        level: int,
        dtype: torch.dtype | None = None,
        fuse: bool = False,
    ) -> None:
        # buffers of its own: those of `level` may hold blocks of other inputs
        self._level = -1 - level
        self._base = file_source(model, ref.stored, reader, self._level)
        self._ref = ref
        self._reader = reader
        self._fuse = fuse
        self._values: ChangeValues | None = None
        self.model = model
        self.name = ref.name
        self.shape = ref.shape
        self.dtype = dtype or (torch.float64 if ref.dtype == "F64" else torch.float32)

    def rounded(self, dtype: torch.dtype) -> ChangedSource:
        """The same tensor, in a type of no more digits."""
        level = -1 - self._level
        return ChangedSource(self.model, self._ref, self._reader, level, dtype, self._fuse)

    def prepare(self) -> Work:
        if self._values is not None:
            return
        yield from self._base.prepare()
        values = ChangeValues(self._ref, self._whole)
        if values.wants_squares and values.rows:
            step = max(1, PLAIN_BLOCK_ELEMENTS // values.columns)
            blocks = [
                (at * values.columns, min(step, values.rows - at) * values.columns)
                for at in range(0, values.rows, step)
            ]
            values.set_norms((yield Parallel(partial(self._squares, values), blocks)))
        self._values = values

    def read(self, start: int, size: int, slot: int) -> Tensor:
        values, base = self._ready(), self._shared(start, size)
        raw = _buffer((self._level, slot), size * self.dtype.itemsize)
        out = torch.frombuffer(raw, dtype=self.dtype)
        if self._fuse:
            compute(values, base, start, out)
        else:
            values.apply(base, start, out)
        return out

    def overflows(self, start: int, size: int) -> bool:
        """Whether finite numbers of a block do not fit `dtype`."""
        wide = self._ready().apply(self._shared(start, size), start)
        return finite(wide) and not finite(wide.to(self.dtype))

    def _ready(self) -> ChangeValues:
        if self._values is None:
            raise RuntimeError(f"{self.name} of {self.model} is read before it is prepared")
        return self._values

    def _shared(self, start: int, size: int) -> Tensor:
        """A block of the base as stored, which several adapters of it want one after another."""
        ref = self._ref
        key = (self._reader, ref.file, ref.start, ref.dtype, start, size)
        last: dict[int, tuple[object, Tensor]] = _buffers.__dict__.setdefault("bases", {})
        known = last.get(self._level)
        if known is None or known[0] != key:
            last.pop(self._level, None)
            last[self._level] = known = (key, self._base.read(start, size, -1))
        return known[1]

    def _squares(self, values: ChangeValues, where: Range) -> tuple[int, Tensor]:
        return values.squares(self._base.read(*where, -2), where[0])

    def _whole(self, part: TensorRef) -> Tensor:
        source = FileSource(self.model, part, self._reader, self._level)
        return source.read(0, part.numel, -2).clone().reshape(part.shape)


class JoinedSource:
    """A tensor put together from parts of others, some of which are computed."""

    def __init__(
        self, model: str, ref: JoinedRef, reader: FileReader, level: int, fuse: bool
    ) -> None:
        self.model = model
        self.name = ref.name
        self.shape = ref.shape
        self._ref = ref
        self._parts = [file_source(model, p.ref, reader, level, fuse) for p in ref.pieces]
        self.dtype = max((part.dtype for part in self._parts), key=lambda dtype: dtype.itemsize)

    def prepare(self) -> Work:
        for part in self._parts:
            yield from part.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        out = torch.empty(size, dtype=self.dtype)
        for i in range(*self._ref.touched(start, start + size)):
            piece, at = self._ref.pieces[i], self._ref.starts[i]
            low, high = max(start, at), min(start + size, at + piece.count)
            block = self._parts[i].read(piece.start + low - at, high - low, slot)
            out[low - start : high - start].copy_(block)
        return out


def file_source(
    model: str, ref: TensorRef, reader: FileReader, level: int, fuse: bool = False
) -> Source:
    """A tensor of a checkpoint, as it lies in its file or as an adapter changes it."""
    if isinstance(ref, ChangedRef):
        return ChangedSource(model, ref, reader, level, fuse=fuse)
    if isinstance(ref, PackedRef):
        return PackedSource(model, ref, reader)
    if isinstance(ref, JoinedRef) and not ref.stored:
        return JoinedSource(model, ref, reader, level, fuse)
    return FileSource(model, ref, reader, level)


class CastSource:
    """Another source rounded to a narrower type, as a recipe's `dtype` asks for inputs."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self._source = source
        self.model = source.model
        self.name = source.name
        self.shape = source.shape
        self.dtype = dtype

    def prepare(self) -> Work:
        yield from self._source.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        return self._source.read(start, size, slot).to(self.dtype)

    def overflows(self, start: int, size: int) -> bool:
        """Whether finite numbers of a block do not fit `dtype`."""
        block = self._source.read(start, size, 0)
        return finite(block) and not finite(block.to(self.dtype))


def cast(source: Source, dtype: torch.dtype | None) -> Source:
    """`source` as `dtype`, without a wrapper where that changes nothing.

    Arithmetic is in float32 at least, so narrower types need not be widened to it.
    """
    if dtype is None or source.dtype == dtype:
        return source
    exact = source.dtype.is_floating_point and source.dtype.itemsize < dtype.itemsize
    if exact and dtype == torch.float32:
        return source
    if isinstance(source, ChangedSource) and dtype.itemsize <= source.dtype.itemsize:
        return source.rounded(dtype)
    return CastSource(source, dtype)


def nonfinite(source: Source, where: Range) -> NonFiniteError:
    """The error for a block of an input in which NaN or infinity was found."""
    if isinstance(source, CastSource | ChangedSource) and source.overflows(*where):
        return NonFiniteError(
            f"tensor {source.name} of model {source.model} holds numbers that the recipe's "
            f"`dtype`, {str(source.dtype).removeprefix('torch.')}, does not hold; choose a "
            "wider dtype, or set `out_dtype` to round the result alone"
        )
    return NonFiniteError(
        f"tensor {source.name} of model {source.model} holds NaN or infinity; the "
        "merge would spread it. Repair that model, or pass --allow-nonfinite "
        "(allow_nonfinite=True) to go on regardless"
    )
