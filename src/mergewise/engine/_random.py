"""Random numbers that depend on nothing but (seed, tensor, expert, position).

A counter-based generator: the number at a position is a keyed hash of the position, so masks do
not depend on block size, worker, device or machine. The mixing function is the two-multiply
32-bit permutation of the family studied by Wellons ("Prospecting for Hash Functions", 2018),
applied twice: the inner round is keyed by the tensor, the outer by the expert and the purpose.
It is a statistical generator, not a cryptographic one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_M1 = 0x7FEB352D
_M2 = 0x846CA68B - (1 << 32)  # as a signed 32-bit number
_HIGH = 0x9E3779B9


def stream_key(seed: int, tensor: str, expert: int | None = None, purpose: str = "") -> int:
    """A signed 32-bit key: of a tensor, or of one expert's stream for one purpose."""
    digest = hashlib.sha256(f"{seed}\0{tensor}\0{expert}\0{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little", signed=True)


def _signed(x: Tensor) -> Tensor:
    """The low 32 bits of int64 as int32."""
    x = x & 0xFFFFFFFF
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int32."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 16)) * _M1
    x = (x ^ _shift(x, 15)) * _M2
    return x ^ _shift(x, 16)


def hash_positions(position: Tensor, tensor_key: int, stream: int) -> Tensor:
    """Hashes of int64 positions as int32; for fixed keys and positions below 2^32, a bijection."""
    inner = _mix(_signed(position) ^ tensor_key)
    return _mix(inner + _signed((position >> 32) * _HIGH + stream))


def order_positions(position: Tensor, tensor_key: int, stream: int) -> Tensor:
    """A random order of int64 positions as int32, for breaking ties; cheaper than a full hash.

    For fixed keys and positions below 2^32 a bijection: the inner hash times an odd number.
    """
    inner = _mix(_signed(position) ^ tensor_key) + _signed((position >> 32) * _HIGH)
    return inner * (stream | 1)


def uniform(hashed: Tensor) -> Tensor:
    """Hashes as float32 numbers in [0, 1), multiples of 2^-24."""
    return _shift(hashed, 8).to(torch.float32) * 2.0**-24
