"""Ranks of scores within their rows."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine import _compile
from mergewise.engine._keys import composite
from mergewise.engine._random import order_positions

if TYPE_CHECKING:
    from torch import Tensor


def row_ranks(score: Tensor, start: int, columns: int, keys: tuple[int, int]) -> Tensor:
    """Ranks of flat float32 `score` within rows of `columns`, 0 for the smallest.

    Equal scores are ordered by a hash of their position, so that no column is preferred.

    Args:
        start: position in the tensor of the first element, which begins a row.
        keys: the random stream that orders equal scores.

    Returns:
        float32, flat: 0 to columns − 1 in each row.
    """
    import numpy as np

    rows = score.numel() // columns
    bits = max(1, (columns - 1).bit_length())
    library = _compile.helpers()
    if library is None:
        ordered = _keys(score, start, columns, bits, keys).reshape(rows, columns)
        ordered.sort(axis=1)
        order = torch.from_numpy((ordered & np.uint64((1 << bits) - 1)).astype(np.int64))
        places = torch.arange(columns, dtype=torch.float32).expand(rows, columns)
        return torch.empty(rows, columns).scatter_(1, order, places).flatten()
    score = score.contiguous()
    ordered = np.empty((rows, columns), dtype=np.uint64)
    shape = (ctypes.c_int64(rows), ctypes.c_int64(columns), ctypes.c_int32(bits))
    library.mw_row_keys(
        ctypes.c_void_p(score.data_ptr()),
        ctypes.c_uint64(start),
        *shape,
        ctypes.c_uint32(keys[0] & 0xFFFFFFFF),
        ctypes.c_uint32(keys[1] & 0xFFFFFFFF),
        ctypes.c_void_p(ordered.ctypes.data),
    )
    ordered.sort(axis=1)
    out = torch.empty_like(score)
    library.mw_place_ranks(
        ctypes.c_void_p(ordered.ctypes.data), *shape, ctypes.c_void_p(out.data_ptr())
    )
    return out


def _keys(score: Tensor, start: int, columns: int, bits: int, keys: tuple[int, int]) -> Any:
    """Keys that order by (score, hash of position) and end in the column, as uint64."""
    import numpy as np

    tie = order_positions(torch.arange(start, start + score.numel()), *keys)
    mask = np.uint64((1 << bits) - 1)
    column = np.arange(score.numel(), dtype=np.uint64) % np.uint64(columns)
    return (composite(score, tie) & ~mask) | column
