"""The element types of safetensors: their codes, sizes and names in torch."""

from __future__ import annotations

from typing import Final

BITS: Final[dict[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element. The order is the rank by which the format's own serialiser sorts tensors."""

RANK: Final[dict[str, int]] = {code: rank for rank, code in enumerate(BITS)}

TORCH_NAMES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""The torch dtype of a code; F4 and F6 have none of one element each."""

CODES: Final[dict[str, str]] = {name: code for code, name in TORCH_NAMES.items()}


def byte_count(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None if its bits do not fill whole bytes or exceed 2**63."""
    total = BITS[dtype]
    elements = 1
    for size in shape:
        elements *= size
        if elements > 2**63:
            return None
    total *= elements
    return None if total % 8 or total > 2**63 else total // 8
