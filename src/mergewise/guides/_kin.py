"""Whether experts were fine-tuned from the base they are compared with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import (
    TORCH_NAMES,
    ChangedRef,
    ChangeValues,
    Checkpoint,
    FileReader,
    PackedRef,
    TensorRef,
    changed_whole,
    read_whole,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.guides._base import Expert

_TENSORS = 24
_ELEMENTS = 1 << 14
"""Read of each tensor, from its middle."""
_FAR = 0.5
"""Of the base's norm. Fine-tuning moves a model by a few hundredths of it; of two models that
have nothing to do with each other, one is 1.4 norms from the other."""
_TIMES = 8.0


def unlike_base(base: Checkpoint, experts: Sequence[Expert]) -> tuple[str, ...]:
    """Warnings for experts whose task vector is too long for one of this base.

    A sample of the matrices is read. An expert is out of line if it lies further from the base
    than half the base's norm, or eight times as far as the median expert.
    """
    found = {expert.label: _distance(base, expert.checkpoint) for expert in experts}
    usual = statistics.median(found.values()) if len(found) > 2 else math.inf
    return tuple(
        f"{label} lies {far:.2g} of the base's norm from {base.path}"
        + (f", the median expert {usual:.2g}" if far <= _FAR else "")
        + "; was it fine-tuned from another base?"
        for label, far in found.items()
        if far > _FAR or far > _TIMES * usual > 0
    )


def _distance(base: Checkpoint, model: Checkpoint) -> float:
    """Norm of the difference over the norm of the base, on a sample of both."""
    names = [n for n, ref in base.tensors.items() if n in model.tensors and _fits(ref, model, n)]
    chosen = names[:: max(1, len(names) // _TENSORS)]
    apart = whole = 0.0
    with FileReader(dict(base.stamps) | dict(model.stamps)) as reader:
        for name in chosen:
            own, other = (_middle(reader, m.tensors[name]) for m in (base, model))
            apart += float((other - own).square().sum())
            whole += float(own.square().sum())
    return math.sqrt(apart / whole) if whole > 0 and math.isfinite(apart) else 0.0


def _fits(ref: TensorRef, model: Checkpoint, name: str) -> bool:
    floating = all(
        getattr(torch, TORCH_NAMES[r.dtype]).is_floating_point for r in (ref, model.tensors[name])
    )
    return floating and len(ref.shape) > 1 and model.tensors[name].shape == ref.shape


def _middle(reader: FileReader, ref: TensorRef) -> Tensor:
    elements = math.prod(ref.shape)
    count = min(elements, _ELEMENTS)
    start = (elements - count) // 2
    if not isinstance(ref, ChangedRef):
        return _part(reader, ref, start, count).double()
    read = partial(read_whole, reader)
    values = ChangeValues(ref, read)
    if values.wants_squares:  # its norms need every row
        return changed_whole(ref, read).reshape(-1)[start : start + count].double()
    return values.apply(_part(reader, ref.stored, start, count), start).double()


def _part(reader: FileReader, ref: TensorRef, start: int, count: int) -> Tensor:
    if isinstance(ref, PackedRef):
        return ref.values(start, count, reader.read_into)
    size = ref.nbytes // max(1, math.prod(ref.shape))
    buffer = bytearray(count * size)
    reader.read_into(ref, start * size, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=getattr(torch, TORCH_NAMES[ref.dtype]))
