"""Where a task's inputs come from: anything that gives a run of elements of one tensor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES, FileReader, TensorRef
from mergewise.engine._kernels import finite
from mergewise.engine._work import Work
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


class CastSource:
    """Another source rounded to a narrower type, as a recipe's `dtype` asks for inputs.

    Args:
        check: refuse finite numbers that the type does not hold.
    """

    def __init__(self, source: Source, dtype: torch.dtype, check: bool) -> None:
        self._source = source
        self._check = check
        self.model = source.model
        self.name = source.name
        self.shape = source.shape
        self.dtype = dtype

    def prepare(self) -> Work:
        yield from self._source.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        block = self._source.read(start, size, slot)
        narrow = block.to(self.dtype)
        if self._check and not finite(narrow) and finite(block):
            raise NonFiniteError(
                f"tensor {self.name} of model {self.model} holds numbers that the recipe's "
                f"`dtype`, {str(self.dtype).removeprefix('torch.')}, does not hold; choose a "
                "wider dtype, or set `out_dtype` to round the result alone"
            )
        return narrow


def cast(source: Source, dtype: torch.dtype | None, *, check: bool = True) -> Source:
    """`source` as `dtype`, without a wrapper where that changes nothing.

    Arithmetic is in float32 at least, so narrower types need not be widened to it.
    """
    if dtype is None or source.dtype == dtype:
        return source
    exact = source.dtype.is_floating_point and source.dtype.itemsize < dtype.itemsize
    if exact and dtype == torch.float32:
        return source
    return CastSource(source, dtype, check)
