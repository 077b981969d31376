"""64-bit keys that put elements in a strict order: by score, then by a hash of the position."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine import _compile
from mergewise.engine._random import order_positions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def keys(score: Tensor, start: int, tensor_key: int, stream: int) -> np.ndarray[Any, Any]:
    """The keys of a run of scores that begins at element `start`, as uint64."""
    import numpy as np

    library = _compile.helpers()
    if library is not None:
        out = np.empty(score.numel(), dtype=np.uint64)
        score = score.contiguous()
        library.mw_keys(
            ctypes.c_void_p(score.data_ptr()),
            ctypes.c_uint64(start),
            ctypes.c_int64(score.numel()),
            ctypes.c_uint32(tensor_key & 0xFFFFFFFF),
            ctypes.c_uint32(stream & 0xFFFFFFFF),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out
    positions = torch.arange(start, start + score.numel())
    return composite(score, order_positions(positions, tensor_key, stream))


def composite(score: Tensor, tie: Tensor) -> np.ndarray[Any, Any]:
    """Float32 scores and int32 hashes as uint64 keys that order by score, then hash."""
    import numpy as np

    low = tie.numpy().view(np.uint32) ^ np.uint32(0x80000000)
    high = score.contiguous().numpy().view(np.uint32).astype(np.uint64)
    return (high << np.uint64(32)) | low
