"""Ranks of scores within their rows."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.engine import _compile
from mergewise.engine._random import hash_positions

if TYPE_CHECKING:
    from torch import Tensor


def row_ranks(score: Tensor, first_row: int, columns: int, keys: tuple[int, int]) -> Tensor:
    """Ranks of flat float32 `score` within rows of `columns`, 0 for the smallest.

    Equal scores are ordered along a walk through the row with a random start and stride, so that
    no column is preferred.

    Returns:
        float32, flat: 0 to columns − 1 in each row.
    """
    rows = score.numel() // columns
    library = _compile.helpers()
    if library is None:
        return _in_torch(score.reshape(rows, columns), first_row, keys)
    score = score.contiguous()
    out = torch.empty_like(score)
    work = torch.empty(2 * columns, dtype=torch.int64)
    library.mw_row_ranks(
        ctypes.c_void_p(score.data_ptr()),
        ctypes.c_int64(first_row),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        ctypes.c_uint32(keys[0] & 0xFFFFFFFF),
        ctypes.c_uint32(keys[1] & 0xFFFFFFFF),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_void_p(work.data_ptr()),
    )
    return out


def _walk(hashed: int, columns: int) -> tuple[int, int]:
    """Start and stride of a row's walk; the stride shares no factor with the row's length."""
    stride = 1 + hashed % columns
    while math.gcd(stride, columns) != 1:
        stride = stride % columns + 1
    return (hashed >> 7) % columns, stride


def _in_torch(score: Tensor, first_row: int, keys: tuple[int, int]) -> Tensor:
    rows, columns = score.shape
    hashed = hash_positions(torch.arange(first_row, first_row + rows), *keys).tolist()
    steps = torch.arange(columns)
    walks = torch.empty(rows, columns, dtype=torch.int64)
    for row, value in enumerate(hashed):
        start, stride = _walk(value & 0xFFFFFFFF, columns)
        walks[row] = (start + stride * steps) % columns
    order = torch.argsort(torch.gather(score, 1, walks), dim=1, stable=True)
    out = torch.empty(rows, columns)
    places = steps.to(torch.float32).expand(rows, columns)
    return out.scatter_(1, torch.gather(walks, 1, order), places).flatten()
