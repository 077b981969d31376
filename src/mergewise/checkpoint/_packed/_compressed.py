"""The formats of compressed-tensors (llm-compressor, vLLM).

Which one a weight has shows in the tensors beside it; the config says the bits. Sources:
compressed-tensors' documentation of its formats; OCP Microscaling Formats 1.0 for ``mxfp``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import Pairs, Tall, Words
from mergewise.checkpoint._packed._find import Search
from mergewise.checkpoint._packed._fp8 import EIGHT, add_grid, block_size, described, fitting
from mergewise.checkpoint._packed._grid import Grid
from mergewise.errors import NotBuiltYetError

_READ = {
    None, "dense", "naive-quantized", "float-quantized", "int-quantized", "pack-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
}  # fmt: skip
_FLOATS = ("F32", "BF16", "F16")


def find_compressed(search: Search) -> None:
    """Every weight that is compressed, by the tensors that it consists of."""
    schemes = _schemes(search)
    for name, ref in search.tensors.items():
        stem = name.removesuffix("_packed")
        if name.endswith(".weight_packed") and ref.dtype == "I32":
            _integers(search, stem, ref, schemes)
        elif name.endswith(".weight_packed"):
            _fours(search, stem, ref)
        elif name.endswith(".weight") and ref.dtype in (*EIGHT, "I8"):
            scale = search.need(f"{name}_scale", name)
            zero = search.tensors.get(f"{name}_zero_point")
            block = next((s.block for s in schemes if s.block), None)
            add_grid(search, name, scale, block, zero)


class _Scheme:
    """What the config says of a group of weights."""

    def __init__(self, search: Search, given: Mapping[str, Any]) -> None:
        bits = given.get("num_bits")
        self.bits = bits if type(bits) is int and 1 <= bits <= 8 else 0
        size = given.get("group_size")
        self.group = size if type(size) is int and size > 0 else 0
        self.block = block_size(search, given.get("block_structure"))


def _schemes(search: Search) -> list[_Scheme]:
    settings = search.settings
    groups = settings.get("config_groups")
    every = [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    for part in (settings, *every):
        _refuse_format(search, part.get("format"))
    sparse = settings.get("sparsity_config")
    if isinstance(sparse, dict):
        _refuse_format(search, sparse.get("format"))
    weights = [g["weights"] for g in every if isinstance(g.get("weights"), dict)]
    return [_Scheme(search, given) for given in weights]


def _refuse_format(search: Search, name: Any) -> None:
    if not (name is None or isinstance(name, str)) or name not in _READ:
        known = ", ".join(sorted(n for n in _READ if n))
        raise NotBuiltYetError(
            f"{where(search.checkpoint.path)}: compressed-tensors' format {shown(name)} cannot be "
            f"read by this version (it can: {known}); use the unquantised checkpoint"
        )


def _integers(search: Search, name: str, packed: TensorRef, schemes: list[_Scheme]) -> None:
    """``pack-quantized``: integers in 32-bit words."""
    scale = search.need(f"{name}_scale", packed.name)
    search.check(scale, _FLOATS)
    if len(packed.shape) < 2:
        search.refuse(packed.name, f"must be a matrix, got shape {list(packed.shape)}")
    found = set(_readings(packed, scale, schemes))
    if len(found) != 1:
        search.refuse(
            packed.name,
            f"{list(packed.shape)} with scales {list(scale.shape)} fits "
            f"{'none' if not found else 'several'} of the config's groups (num_bits, group_size)",
        )
    bits, columns, block = found.pop()
    shape = (*packed.shape[:-1], columns)
    order = search.tensors.get(f"{name}_g_idx")
    if order is not None:
        search.check(order, ("I32", "I64"), (columns,))
    stated = search.tensors.get(f"{name}_shape")
    if stated is not None:
        search.check(stated, ("I64", "I32"), (len(shape),))
    zero = _zero(search, f"{name}_zero_point", scale, bits, shape[-2])
    kind = f"I{bits} {described(block, shape)}"
    codes = Words(packed, kind, bits, columns)
    grid = Grid(codes, scale, block, zero=zero, columns_of=order, stated=stated)
    search.add(name, shape, grid)


def _readings(
    packed: TensorRef, scale: TensorRef, schemes: list[_Scheme]
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Bits, columns and block of each of the config's groups that the shapes allow."""
    words = packed.shape[-1]
    for scheme in schemes:
        if not scheme.bits or len(scale.shape) != len(packed.shape):
            continue
        grouped = scheme.group and scale.shape[-1] > 1
        columns = scale.shape[-1] * scheme.group if grouped else words * 32 // scheme.bits
        block = fitting((*packed.shape[:-1], columns), scale.shape, None)
        if block and -(-columns * scheme.bits // 32) == words:
            yield scheme.bits, columns, block


def _zero(
    search: Search, name: str, scale: TensorRef, bits: int, rows: int
) -> TensorRef | Tall | None:
    zero = search.tensors.get(name)
    if zero is None:
        return None
    if zero.dtype == "I32":
        shape = (*scale.shape[:-2], -(-scale.shape[-2] * bits // 32), scale.shape[-1])
        search.check(zero, ("I32",), shape)
        if scale.shape[-2] != rows:
            search.refuse(name, "is packed, though there is no scale for each row")
        return Tall(zero, bits, rows)
    search.check(zero, ("I8",), scale.shape)
    return zero


def _fours(search: Search, name: str, packed: TensorRef) -> None:
    """``nvfp4`` and ``mxfp4``: pairs of E2M1 with a scale for 16 or 32 of them."""
    search.check(packed, ("U8",))
    scale = search.need(f"{name}_scale", packed.name)
    over = search.tensors.get(f"{name}_global_scale")
    search.check(scale, ("F8_E4M3",) if over else ("U8", "F8_E8M0"))
    shape = (*packed.shape[:-1], 2 * packed.shape[-1]) if len(packed.shape) > 1 else (0, 0)
    group = 16 if over else 32
    if scale.shape != (*shape[:-1], shape[-1] // group) or shape[-1] % group:
        search.refuse(
            packed.name,
            f"{list(packed.shape)} with scales {list(scale.shape)} is not four-bit floating point "
            f"in groups of {group}",
        )
    if over is not None:
        search.check(over, _FLOATS, (1,), (), shape[:-2], (*shape[:-2], 1))
    kind = "NVFP4" if over else "MXFP4"
    search.add(name, shape, Grid(Pairs(packed, kind), scale, (1, group), over=over))
