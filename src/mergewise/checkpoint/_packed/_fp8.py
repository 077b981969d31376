"""Floating point of eight bits with scales: by blocks (DeepSeek-V3), rows, or one a tensor.

Sources: DeepSeek-V3's checkpoint notes (``weight_scale_inv`` is what codes are multiplied by, one
number for 128 x 128 codes); `transformers`' FineGrainedFP8 and FbgemmFp8 settings.
"""

from __future__ import annotations

from typing import Any

from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import Plain
from mergewise.checkpoint._packed._find import Search
from mergewise.checkpoint._packed._grid import Grid, grid_of

EIGHT = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_MAX_BLOCK = 1 << 20


def find_fp8(search: Search) -> None:
    """Every tensor of eight-bit floating point and its scales."""
    block = block_size(search, search.settings.get("weight_block_size"))
    for name, ref in search.tensors.items():
        if ref.dtype not in EIGHT:
            continue
        scale = next((n for n in _scale_names(name) if n in search.tensors), None)
        if scale is None:
            search.refuse(name, f"({ref.dtype}) has no scale beside it ({name}_scale_inv)")
        add_grid(search, name, search.tensors[scale], block)


def _scale_names(name: str) -> tuple[str, ...]:
    stem = name.removesuffix(".weight")
    return (f"{name}_scale_inv", f"{name}_scale", f"{stem}.scale_weight", f"{stem}.scale")


def block_size(search: Search, given: Any) -> tuple[int, int] | None:
    """A pair of counts from the config; None if it states none."""
    if given is None:
        return None
    good = isinstance(given, list) and len(given) == 2
    if not good or not all(type(v) is int and 0 < v <= _MAX_BLOCK for v in given):
        search.refuse("weight_block_size", f"must be two counts, got {given!r}")
    return given[0], given[1]


def add_grid(
    search: Search,
    name: str,
    scale: TensorRef,
    block: tuple[int, int] | None,
    zero: TensorRef | None = None,
    divisor: float = 1.0,
) -> None:
    """Note a weight with one code an element; its block is what the scale's shape says."""
    ref = search.tensors[name]
    if len(ref.shape) < 2:
        search.refuse(name, f"({ref.dtype}) must be a matrix, got shape {list(ref.shape)}")
    search.check(scale, SCALES)
    found = fitting(ref.shape, scale.shape, block)
    if found is None:
        search.refuse(
            scale.name,
            f"has shape {list(scale.shape)}, which does not fit {name} {list(ref.shape)}"
            + (f" in blocks of {block[0]} x {block[1]}" if block else ""),
        )
    if zero is not None:
        search.check(zero, ("I8", "U8", "I32", "F16", "BF16", "F32"), scale.shape)
    kind = f"{ref.dtype} {described(found, ref.shape)}"
    grid = Grid(Plain(ref, kind), scale, found, zero=zero, divisor=divisor)
    search.add(name, ref.shape, grid)


def fitting(
    shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The rows and columns that share a scale; None if the shapes do not fit together."""
    stack, (rows, columns) = shape[:-2], shape[-2:]
    if block and scale == (*stack, *grid_of(shape, block)):
        return block
    if scale in ((*stack, rows, 1), (*stack, rows)):
        return 1, columns
    one = {(*stack, 1, 1), (*stack, 1), stack}
    if not stack:
        one = {(), (1,), (1, 1)}
    if scale in one:
        return rows, columns
    if len(scale) == len(shape) and scale[:-2] == stack and 0 not in scale:
        high, wide = rows // scale[-2], columns // scale[-1]
        if high * scale[-2] == rows and wide * scale[-1] == columns:
            return high, wide
    return None


def described(block: tuple[int, int], shape: tuple[int, ...]) -> str:
    """How scales are shared, in words."""
    rows, columns = shape[-2:]
    if block == (1, columns):
        return "by row"
    if block == (rows, columns):
        return "by tensor"
    return f"by {block[0]} x {block[1]}"
