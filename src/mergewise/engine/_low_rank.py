"""Low-rank changes of weights by a compiled loop, where there is one; see `_low_rank.c`."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import ChangeValues
from mergewise.engine import _compile

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = {"torch.float32": 0, "torch.bfloat16": 1, "torch.float16": 2}


def compute(values: ChangeValues, base: Tensor, start: int, out: Tensor) -> None:
    """As ``values.apply(base, start, out)``, to rounding; faster where that can be compiled.

    Args:
        base: elements from `start` on, flat, as stored.
        out: of the same length.
    """
    factors = values.factors
    run = _loop()
    kinds = _KINDS.get(str(base.dtype)), _KINDS.get(str(out.dtype))
    exact = values.dtype == torch.float32 and base.is_contiguous()
    if factors is None or run is None or None in kinds or not exact:
        values.apply(base, start, out)
        return
    left, right = factors
    columns, end = values.columns, start + len(base)
    first, last = -(-start // columns), end // columns
    if first >= last:
        values.apply(base, start, out)
        return
    head, tail = first * columns - start, last * columns - start
    run(
        _at(base, head), kinds[0], _at(left, first * left.shape[1]), _at(right, 0),
        left.shape[1], last - first, columns, _at(out, head), kinds[1],
    )  # fmt: skip
    for piece in (slice(0, head), slice(tail, len(base))):
        if piece.start < piece.stop:
            values.apply(base[piece], start + piece.start, out[piece])


def _at(tensor: Tensor, element: int) -> int:
    return tensor.data_ptr() + element * tensor.element_size()


@functools.cache
def _loop() -> ctypes._NamedFuncPointer | None:
    source = Path(__file__).with_name("_low_rank.c").read_text()
    library = _compile.load(_compile.PRELUDE + source)
    if library is None:
        return None
    pointer, count, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found = library.mw_low_rank
    found.restype = None
    found.argtypes = [pointer, kind, pointer, pointer, count, count, count, pointer, kind]
    return found
