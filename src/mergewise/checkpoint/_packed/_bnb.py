"""bitsandbytes: rows of eight bits (LLM.int8), and four bits by blocks (NF4, FP4).

Of four bits, the shape, block sizes and names are in a small tensor of JSON beside the weight,
``NAME.quant_state.bitsandbytes__nf4``, which is read when the checkpoint is opened. A number is
``quant_map[code] * absmax[block]``, the first of a byte in its high bits. Absolute maxima may be
quantised themselves: ``nested_quant_map[absmax] * nested_absmax[block] + nested_offset``.

Source: bitsandbytes' `QuantState.as_dict` and `Int8Params`, from memory; tested against arithmetic
by hand, not against the package.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint._files import open_regular, read_at
from mergewise.checkpoint._hub import here
from mergewise.checkpoint._json import parse_object
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import Plain
from mergewise.checkpoint._packed._find import Search
from mergewise.checkpoint._packed._grid import Grid
from mergewise.checkpoint._packed._ref import Fill, Packing, taken

if TYPE_CHECKING:
    from torch import Tensor

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE = 65_536
_MAX_BLOCK = 1 << 16


@dataclass(frozen=True)
class Nested:
    """How absolute maxima are quantised; see the module."""

    absmax: TensorRef
    map: TensorRef
    block: int
    offset: float


@dataclass(frozen=True)
class Fours(Packing):
    """Four bits a number, with a scale for `block` of them."""

    name: str
    codes: TensorRef
    absmax: TensorRef
    map: TensorRef
    block: int
    nested: Nested | None

    @property
    def kind(self) -> str:
        return f"bitsandbytes {self.name}"

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        more = (self.nested.absmax, self.nested.map) if self.nested else ()
        return (self.codes, self.absmax, self.map, *more)

    @property
    def granule(self) -> int:
        return self.block

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        packed = taken(fill, self.codes, start // 2, -(-size // 2))
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).view(-1)[:size]
        values = taken(fill, self.map, 0, 16).float()[codes.int()]
        first, count = start // self.block, -(-size // self.block)
        scales = self._scales(first, count, fill).repeat_interleave(self.block)[:size]
        return values.mul_(scales)

    def _scales(self, first: int, count: int, fill: Fill) -> Tensor:
        found = taken(fill, self.absmax, first, count)
        if self.nested is None:
            return found.float()
        numbers = taken(fill, self.nested.map, 0, 256).float()[found.int()]
        of = torch.arange(first, first + count) // self.nested.block
        low = int(of[0])
        outer = taken(fill, self.nested.absmax, low, int(of[-1]) + 1 - low).float()
        return numbers * outer[of - low] + self.nested.offset


def find_bnb(search: Search) -> None:
    """Every weight with a column of maxima, or with a state of four bits."""
    for name, ref in search.tensors.items():
        if _STATE in name:
            _fours(search, name, ref)
        elif name.endswith(".SCB"):
            _eights(search, name, ref)


def _eights(search: Search, name: str, scale: TensorRef) -> None:
    stem = name.removesuffix(".SCB")
    weight = search.need(f"{stem}.weight", name)
    search.check(weight, ("I8",))
    if len(weight.shape) != 2:
        search.refuse(weight.name, f"must be a matrix, got shape {list(weight.shape)}")
    search.check(scale, ("F32",), weight.shape[:1])
    grid = Grid(Plain(weight, "bitsandbytes int8"), scale, (1, weight.shape[1]), divisor=127.0)
    search.add(weight.name, weight.shape, grid, f"{stem}.weight_format")


def _fours(search: Search, name: str, state: TensorRef) -> None:
    stem, kind = name.split(_STATE, 1)
    codes = search.need(stem, name)
    stated = _State(search, state)
    shape, block = stated.shape, stated.count("blocksize")
    size = math.prod(shape)
    search.check(codes, ("U8",), (size // 2, 1), (size // 2,))
    blocks = -(-size // block)
    if size % 2 or block % 2:
        search.refuse(name, f"states an odd number of elements: {list(shape)} in blocks of {block}")
    absmax, found = search.need(f"{stem}.absmax", name), search.need(f"{stem}.quant_map", name)
    search.check(found, ("F32",), (16,))
    nested = None
    if f"{stem}.nested_absmax" in search.tensors:
        nested = _nested(search, stem, stated, blocks)
    search.check(absmax, ("U8",) if nested else ("F32", "F16", "BF16"), (blocks,))
    packing = Fours(kind, codes, absmax, found, block, nested)
    search.add(stem, shape, packing, name)


def _nested(search: Search, stem: str, stated: _State, blocks: int) -> Nested:
    outer = search.tensors[f"{stem}.nested_absmax"]
    inner = search.need(f"{stem}.nested_quant_map", outer.name)
    block = stated.count("nested_blocksize")
    search.check(outer, ("F32",), (-(-blocks // block),))
    search.check(inner, ("F32",), (256,))
    return Nested(outer, inner, block, stated.number("nested_offset"))


class _State:
    """The JSON beside a weight, checked where it is used."""

    def __init__(self, search: Search, ref: TensorRef) -> None:
        self._search, self._ref = search, ref
        search.check(ref, ("U8",))
        if ref.nbytes > _MAX_STATE:
            search.refuse(ref.name, f"takes {ref.nbytes:,} bytes, at most {_MAX_STATE:,} expected")
        descriptor = open_regular(here(ref.file))
        try:
            raw = read_at(descriptor, ref.nbytes, ref.start)
        finally:
            os.close(descriptor)
        self._stated: dict[str, Any] = parse_object(raw, ref.file, "quantisation state")

    @property
    def shape(self) -> tuple[int, ...]:
        value = self._stated.get("shape")
        listed = value if isinstance(value, list) else []
        if not 0 < len(listed) <= 8 or not all(type(v) is int and 0 < v < 2**40 for v in listed):
            self._search.refuse(self._ref.name, f"states the shape {value!r:.80}")
        return tuple(listed)

    def count(self, key: str) -> int:
        value = self._stated.get(key)
        if type(value) is not int or not 0 < value <= _MAX_BLOCK:
            self._search.refuse(self._ref.name, f"states the {key} {value!r:.80}")
        return value

    def number(self, key: str) -> float:
        value = self._stated.get(key)
        if not isinstance(value, float) or not math.isfinite(value):
            self._search.refuse(self._ref.name, f"states the {key} {value!r:.80}")
        return float(value)
