"""The header of a GGUF file, read without trusting a byte of it.

The format (ggml's docs/gguf.md): ``GGUF``, version, number of tensors, number of metadata pairs;
the pairs; for each tensor its name, axes (the fastest first), type and offset; padding up to a
multiple of ``general.alignment``; the data, each tensor's padded likewise.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import FileStamp, open_regular, shown, where
from mergewise.checkpoint._gguf._cursor import Cursor
from mergewise.checkpoint._gguf._types import TYPES, GgmlType
from mergewise.errors import CheckpointError, NotBuiltYetError

MAX_TENSORS = 200_000
MAX_PAIRS = 10_000
MAX_KEY = 65_535
MAX_NAME = 256
MAX_TEXT = 2_000_000
"""Bytes of a string that is kept; chat templates take some thousands."""
MAX_STRINGS = 8_000_000
_KEPT = 512
"""Numbers of an array that are kept; of longer ones the length alone."""
_MAX_AXES = 4
_MAX_ALIGNMENT = 1 << 20
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class LongArray:
    """An array of the metadata that is not kept, such as the vocabulary."""

    length: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` with the slowest axis first, `start` and `end` in the file."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    stamp: FileStamp


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header; no tensor data is read.

    Raises:
        CheckpointError: if the file is absent, no regular file, truncated, or breaks a rule of
            the format.
        NotBuiltYetError: for versions 1 and big-endian files.
    """
    descriptor = open_regular(path)
    try:
        stamp = FileStamp.of(os.fstat(descriptor))
        return _read(Cursor(descriptor, stamp.size, path), stamp)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)


def _read(cursor: Cursor, stamp: FileStamp) -> GgufHeader:
    if cursor.size < 24 or cursor.take(4, "the magic") != b"GGUF":
        raise cursor.refuse("not a GGUF file: it must begin with GGUF and 20 bytes more")
    _check_version(cursor)
    tensors = _count(cursor, "tensors", MAX_TENSORS, 24)
    pairs = _count(cursor, "metadata pairs", MAX_PAIRS, 13)
    metadata = _metadata(cursor, pairs)
    found = [_tensor(cursor) for _ in range(tensors)]
    alignment = _alignment(cursor, metadata)
    data = -(-cursor.position // alignment) * alignment
    return GgufHeader(metadata, _placed(cursor, found, data, alignment), stamp)


def _check_version(cursor: Cursor) -> None:
    version = cursor.number("I", "the version")
    if version in (2, 3):
        return
    why = f"version {version}"
    if version and version & 0xFFFF == 0:
        why = "big-endian numbers"
    if version == 1 or version & 0xFFFF == 0:
        raise NotBuiltYetError(
            f"{where(cursor.path)}: a GGUF file with {why} cannot be read by this version; "
            "convert the model anew with llama.cpp"
        )
    raise cursor.refuse(f"GGUF version 2 or 3 expected, got {version}")


def _count(cursor: Cursor, what: str, most: int, each: int) -> int:
    count: int = cursor.number("Q", f"the number of {what}")
    if count > most or count * each > cursor.left:
        raise cursor.refuse(
            f"it claims {count:,} {what}, more than {most:,} or than its {cursor.size:,} bytes hold"
        )
    return count


def _metadata(cursor: Cursor, pairs: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = _name(cursor, cursor.text(MAX_KEY, "a metadata key"), "a metadata key")
        if key in metadata:
            raise cursor.refuse(f"the metadata key {shown(key)} is there twice")
        kind = cursor.number("I", "a metadata type")
        metadata[key] = _value(cursor, kind, f"metadata {shown(key)}")
    return metadata


def _name(cursor: Cursor, raw: bytes, what: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.refuse(f"{what} is not UTF-8: {shown(raw)}") from None
    if not name:
        raise cursor.refuse(f"{what} is empty")
    return name


def _value(cursor: Cursor, kind: int, what: str) -> Any:
    if kind == _STRING:
        return cursor.text(MAX_TEXT, what).decode("utf-8", errors="replace")
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _NUMBERS:
        raise cursor.refuse(f"{what} has the unknown type {kind}")
    return cursor.number(_NUMBERS[kind], what)


def _array(cursor: Cursor, what: str) -> Any:
    kind, length = cursor.number("I", what), cursor.number("Q", what)
    if kind == _STRING:
        if length > MAX_STRINGS or length * 8 > cursor.left:
            raise cursor.refuse(f"{what} claims {length:,} strings")
        cursor.skip_texts(length, what)
        return LongArray(length)
    if kind not in _NUMBERS:
        raise cursor.refuse(f"{what} is an array of the unknown type {kind}")
    if length > _KEPT:
        cursor.skip(length * _SIZES[kind], what)
        return LongArray(length)
    return [cursor.number(_NUMBERS[kind], what) for _ in range(length)]


def _tensor(cursor: Cursor) -> tuple[str, GgmlType, tuple[int, ...], int]:
    name = _name(cursor, cursor.text(MAX_NAME, "a tensor's name"), "a tensor's name")
    what = f"tensor {shown(name)}"
    axes = cursor.number("I", what)
    if not 1 <= axes <= _MAX_AXES:
        raise cursor.refuse(f"{what}: 1 to {_MAX_AXES} axes expected, got {axes}")
    shape = tuple(cursor.number("Q", what) for _ in range(axes))[::-1]
    if 0 in shape or math.prod(shape) >= 2**63:
        raise cursor.refuse(f"{what}: no sane shape: {list(shape)}")
    kind = cursor.number("I", what)
    if kind not in TYPES:
        raise cursor.refuse(f"{what}: unknown or withdrawn type {kind}")
    if shape[-1] % TYPES[kind].block:
        raise cursor.refuse(
            f"{what}: rows of {TYPES[kind].name} must be multiples of {TYPES[kind].block}, "
            f"got {shape[-1]:,}"
        )
    return name, TYPES[kind], shape, cursor.number("Q", what)


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        raise cursor.refuse(f"general.alignment must be a power of two from 8, got {shown(value)}")
    return value


def _placed(
    cursor: Cursor,
    found: list[tuple[str, GgmlType, tuple[int, ...], int]],
    data: int,
    alignment: int,
) -> dict[str, GgufTensor]:
    """The tensors with their places, if they cover the data without holes and overlaps."""
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, kind, shape, offset in sorted(found, key=lambda t: t[3]):
        size = math.prod(shape) // kind.block * kind.size
        if name in tensors:
            raise cursor.refuse(f"tensor {shown(name)} is there twice")
        if offset != expected:
            raise cursor.refuse(
                f"tensor {shown(name)} begins at byte {offset:,} of the data, expected {expected:,}"
            )
        start = data + offset
        if start + size > cursor.size:
            raise cursor.refuse(
                f"truncated: tensor {shown(name)} ends at byte {start + size:,}, "
                f"the file has {cursor.size:,}"
            )
        tensors[name] = GgufTensor(name, kind, shape, start, start + size)
        expected = -(-(offset + size) // alignment) * alignment
    return tensors
