"""Squared sums over a matrix, weighted by what drives its inputs; read in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import (
    TORCH_NAMES,
    ChangedRef,
    ChangeValues,
    FileReader,
    PackedRef,
    TensorRef,
    read_whole,
)
from mergewise.errors import EvidenceError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 20
"""Elements read at a time."""


def driven_square(
    reader: FileReader,
    ref: TensorRef,
    squares: Tensor,
    turned: bool,
    minus: TensorRef | None = None,
) -> float:
    """Sum over outputs o and inputs j of (W_oj − V_oj)² s_j, in float64.

    A convolution is its flattened matrix; each group of one sees its own part of the inputs.

    Args:
        ref: W.
        squares: s, float64 [inputs].
        turned: whether W is stored [inputs, outputs], as GPT-2 stores it.
        minus: V, of the shape of W; zero if None.

    Raises:
        EvidenceError: if `squares` does not fit the shape.
        NonFiniteError: if the result is not finite.
        CheckpointError: if a file changed or ends early.
    """
    rows, width = ref.shape[0], math.prod(ref.shape[1:])
    groups = 1 if turned else len(squares) // max(1, width)
    fits = groups > 0 and len(squares) == groups * width and rows % groups == 0
    if len(squares) != rows if turned else not fits:
        raise EvidenceError(
            f"{ref.name} has shape {list(ref.shape)}, and its evidence {len(squares)} input "
            "channels; was it collected on this model?"
        )
    total = 0.0
    others = None if minus is None else pieces(reader, minus)
    for first, values in pieces(reader, ref):
        part = (values if others is None else values - next(others)[1]).square()
        if turned:
            total += float(part.sum(1) @ squares[first : first + len(part)])
        elif groups == 1:
            total += float((part @ squares).sum())
        else:
            group = torch.arange(first, first + len(part)) // (rows // groups)
            total += float((part * squares.view(groups, width)[group]).sum())
    if not math.isfinite(total):
        raise NonFiniteError(f"{ref.file}: {ref.name} holds NaN or infinity; fetch it again")
    return total


def pieces(reader: FileReader, ref: TensorRef) -> Iterator[tuple[int, Tensor]]:
    """(first row, some rows as float64 [rows, width]); a vector's rows are its elements.

    What an adapter changes is computed; the adapter's matrices are in memory meanwhile.
    """
    if isinstance(ref, ChangedRef):
        yield from _changed(reader, ref)
        return
    rows, width = (ref.shape or (1,))[0], math.prod(ref.shape[1:])
    size = ref.nbytes // max(1, rows * width)
    step = max(1, _PIECE // max(1, width))
    if isinstance(ref, PackedRef):
        for first in range(0, rows, step):
            count = min(step, rows - first)
            flat = ref.values(first * width, count * width, reader.read_into)
            yield first, flat.double().view(count, width)
        return
    kind = getattr(torch, TORCH_NAMES[ref.dtype])
    for first in range(0, rows if width else 0, step):
        count = min(step, rows - first)
        buffer = bytearray(count * width * size)
        reader.read_into(ref, first * width * size, memoryview(buffer))
        yield first, torch.frombuffer(buffer, dtype=kind).double().view(count, width)


def _changed(reader: FileReader, ref: ChangedRef) -> Iterator[tuple[int, Tensor]]:
    values = ChangeValues(ref, partial(read_whole, reader))
    stored = (reader, ref.stored)
    if values.wants_squares:
        flat = ((first, rows.reshape(-1)) for first, rows in pieces(*stored))
        values.set_norms([values.squares(rows, first * values.columns) for first, rows in flat])
    for first, rows in pieces(*stored):
        changed = values.apply(rows.reshape(-1), first * values.columns)
        yield first, changed.double().view(rows.shape)
