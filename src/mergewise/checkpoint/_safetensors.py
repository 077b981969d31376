"""The header of a safetensors file, read without trusting a byte of it.

The format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' data. The
JSON maps each name to ``{"dtype", "shape", "data_offsets": [start, end]}`` (relative to the
data), and optionally ``__metadata__`` to a map of strings. The ranges must cover the data
exactly: no hole, no overlap, nothing left over.

This reader is as strict as the format's own and stricter where leniency serves nobody: it also
refuses a tensor named twice, an unknown key in an entry and an empty name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mergewise.checkpoint._dtypes import BITS, byte_count
from mergewise.checkpoint._files import FileStamp, open_regular, read_at, shown, where
from mergewise.checkpoint._json import parse_object
from mergewise.errors import CheckpointError

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
MAX_TENSORS = 200_000
MAX_NAME = 4096
MAX_RANK = 64
_KEYS = {"dtype", "shape", "data_offsets"}
_LFS = b"version https://git-lfs"
Reader = Callable[[int, int], bytes]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: safetensors code, such as ``BF16``.
        start: absolute offset of the first byte in the file.
        end: absolute offset behind the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        tensors: by name, in the order of their data.
        metadata: the strings under ``__metadata__``.
        file_size: bytes.
        data_start: absolute offset of the first tensor's data.
        stamp: the file's state when it was read.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_size: int
    data_start: int
    stamp: FileStamp


def read_header(path: Path | str) -> Header:
    """Read and check the header of a safetensors file; no tensor data is read.

    Raises:
        CheckpointError: if the file is absent, no regular file, truncated, a Git LFS pointer, or
            breaks any rule of the format.
    """
    path = Path(path)
    descriptor = open_regular(path)
    try:
        stamp = FileStamp.of(os.fstat(descriptor))
        return parse_header(partial(read_at, descriptor), stamp, path)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)


def parse_header(read: Reader, stamp: FileStamp, path: Path) -> Header:
    """Check the header of a file that is read by `read`, as `read_header` does.

    Args:
        read: given a count and an offset, the bytes there; fewer only at the end.
        stamp: of the file; its size is checked against the header.
        path: what messages call the file.

    Raises:
        CheckpointError: likewise.
    """
    raw = _raw_header(read, stamp.size, path)
    entries = parse_object(raw, path, "header", naturals=True)
    metadata = _metadata(entries.pop("__metadata__", None), path)
    data_start = 8 + len(raw)
    found = [_entry(name, entry, data_start, path) for name, entry in entries.items()]
    tensors = _covering(found, data_start, stamp.size, path)
    return Header(tensors, metadata, stamp.size, data_start, stamp)


def _raw_header(read: Reader, size: int, path: Path) -> bytes:
    start = read(len(_LFS), 0)
    if start == _LFS:
        raise CheckpointError(
            f"{where(path)}: a Git LFS pointer, not the file itself; run `git lfs pull` there"
        )
    if size < 8:
        raise CheckpointError(
            f"{where(path)}: {size} bytes are too few for a safetensors file; fetch it again"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{where(path)}: not a safetensors file: it claims a header of {length:,} bytes, "
            f"where at most {MAX_HEADER:,} are allowed"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{where(path)}: truncated: a header of {length:,} bytes is announced, "
            f"but only {size - 8:,} follow; fetch it again"
        )
    raw = read(length, 8)
    if len(raw) < length:
        raise CheckpointError(f"{where(path)}: truncated while its header was read")
    _refuse_crowds(raw, path)
    return raw


def _refuse_crowds(raw: bytes, path: Path) -> None:
    if not raw.startswith(b"{"):
        raise CheckpointError(
            f"{where(path)}: not a safetensors file: its header must begin with '{{', "
            f"got {raw[:8]!r}"
        )
    # counted before parsing: parsed JSON takes many times the memory of its text
    if raw.count(b"{") > MAX_TENSORS or raw.count(b",") > 16 * MAX_TENSORS:
        raise CheckpointError(
            f"{where(path)}: the header lists more than {MAX_TENSORS:,} tensors; "
            "split the file into shards"
        )
    if raw.count(b"[") > 4 * MAX_TENSORS:
        raise CheckpointError(f"{where(path)}: the header is nested too deeply")


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where(path)}: __metadata__ must map strings to strings, got {type(value).__name__}"
        )
    for key, text in value.items():
        if not isinstance(text, str) or not _encodable(key + text):
            raise CheckpointError(
                f"{where(path)}: __metadata__ must map strings to strings; "
                f"{shown(key)} has {type(text).__name__}"
            )
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{where(path)}: tensor {shown(name)}: {what}; fetch it again")

    if not 0 < len(name) <= MAX_NAME:
        raise bad(f"a name of 1 to {MAX_NAME} characters expected, got {len(name):,}")
    if not _encodable(name):
        raise bad("the name is not valid Unicode")
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise bad(f"dtype, shape and data_offsets expected, got {shown(got)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad(f"unknown dtype {shown(dtype)}; known are {', '.join(BITS)}")
    if not _is_list_of_counts(shape) or len(shape) > MAX_RANK:
        raise bad(f"shape must be a list of at most {MAX_RANK} counts, got {shown(shape)}")
    if not _is_list_of_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"data_offsets must be [start, end] in order, got {shown(offsets)}")
    start, end = offsets
    expected = byte_count(dtype, tuple(shape))
    if expected != end - start:
        size = "no whole or sane number of" if expected is None else f"{expected:,}"
        raise bad(f"{dtype} {shown(shape)} takes {size} bytes, its range has {end - start:,}")
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def _covering(
    found: list[TensorInfo], data_start: int, file_size: int, path: Path
) -> dict[str, TensorInfo]:
    found.sort(key=lambda t: (t.start, t.end))
    position = data_start
    for tensor in found:
        if tensor.start != position:
            kind = "overlaps the one before" if tensor.start < position else "leaves a hole before"
            raise CheckpointError(
                f"{where(path)}: tensor {shown(tensor.name)} {kind}: it starts at byte "
                f"{tensor.start:,}, expected {position:,}; fetch it again"
            )
        position = tensor.end
    if position != file_size:
        state = "truncated" if position > file_size else "longer than its header says"
        raise CheckpointError(
            f"{where(path)}: {state}: {position:,} bytes expected, got {file_size:,}; "
            "fetch it again"
        )
    return {tensor.name: tensor for tensor in found}
