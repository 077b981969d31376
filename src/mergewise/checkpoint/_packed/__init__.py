"""Quantised weights, read as the floating-point numbers that they stand for."""

from mergewise.checkpoint._packed._find import (
    quantisation,
    refuse_unasked,
    unpacked_checkpoint,
    with_settings,
)
from mergewise.checkpoint._packed._ref import Fill, PackedRef, Packing, packed_ref, strided

__all__ = [
    "Fill",
    "PackedRef",
    "Packing",
    "packed_ref",
    "quantisation",
    "refuse_unasked",
    "strided",
    "unpacked_checkpoint",
    "with_settings",
]
