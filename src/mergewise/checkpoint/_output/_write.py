"""Lay out output shards, so that tensors can be written in place in any order.

A safetensors header depends on names, dtypes and shapes alone. It is written first, the file is
given its final size, and every block then has its place.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergewise.checkpoint._dtypes import RANK, byte_count
from mergewise.checkpoint._files import where
from mergewise.checkpoint._safetensors import MAX_HEADER
from mergewise.errors import OutputError

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype code, shape."""


@dataclass(frozen=True)
class ShardLayout:
    """One output file, before any of its data exists.

    Attributes:
        filename: the name the Hub's loaders expect.
        header: everything before the data: length, JSON, padding.
        offsets: absolute offset of each tensor's first byte.
        sizes: bytes of each tensor.
        size: bytes of the whole file.
        parameters: elements of all tensors.
    """

    filename: str
    header: bytes
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    size: int
    parameters: int


def plan_shards(
    tensors: Sequence[TensorSpec],
    max_bytes: int,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> list[ShardLayout]:
    """Distribute tensors over files of at most `max_bytes` of data each.

    Tensors keep their order between files: a file is closed when the next one does not fit. A
    tensor larger than `max_bytes` has a file of its own. Within a file the order is the
    serialiser's, by dtype and then name.

    Args:
        metadata: written sorted by key; ``{"format": "pt"}`` if not given.
        stem: what the files' names begin with.

    Raises:
        OutputError: if `max_bytes` is not positive, or a header grows over the format's limit.
        ValueError: if a name occurs twice, or a dtype or shape is impossible.
    """
    if max_bytes <= 0:
        raise OutputError(f"the shard size must be positive, got {max_bytes} bytes")
    if len({name for name, _, _ in tensors}) < len(tensors):
        raise ValueError("a tensor name occurs twice")
    groups = _groups(tensors, max_bytes)
    if len(groups) == 1:
        return [_layout(f"{stem}.safetensors", groups[0], metadata)]
    count = len(groups)
    return [
        _layout(f"{stem}-{i:05d}-of-{count:05d}.safetensors", group, metadata)
        for i, group in enumerate(groups, 1)
    ]


def _groups(tensors: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    used = 0
    for tensor in tensors:
        size = _size(tensor)
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def _size(tensor: TensorSpec) -> int:
    name, dtype, shape = tensor
    size = byte_count(dtype, shape) if dtype in RANK else None
    if size is None:
        raise ValueError(f"{name}: {dtype} {shape} cannot be stored")
    return size


def _layout(
    filename: str, tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None
) -> ShardLayout:
    ordered = sorted(tensors, key=lambda t: (-RANK[t[1]], t[0]))
    entries: dict[str, object] = {
        "__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))
    }
    starts, sizes = {}, {}
    position = 0
    for name, dtype, shape in ordered:
        starts[name], sizes[name] = position, _size((name, dtype, shape))
        end = position + sizes[name]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = _header(entries)
    offsets = {name: len(header) + start for name, start in starts.items()}
    parameters = sum(math.prod(shape) for _, _, shape in tensors)
    return ShardLayout(filename, header, offsets, sizes, len(header) + position, parameters)


def _header(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise OutputError(
            f"a shard's header would take {len(text):,} bytes, where {MAX_HEADER:,} are allowed; "
            "choose a smaller shard size"
        )
    return len(text).to_bytes(8, "little") + text


def index_json(layouts: Sequence[ShardLayout]) -> bytes:
    """``model.safetensors.index.json`` for these shards, as `transformers` writes it."""
    index = {
        "metadata": {
            "total_parameters": sum(layout.parameters for layout in layouts),
            "total_size": sum(sum(layout.sizes.values()) for layout in layouts),
        },
        "weight_map": {name: layout.filename for layout in layouts for name in layout.offsets},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def create_shard(path: Path, layout: ShardLayout) -> int:
    """Create the file at its final size with its header in place; returns a writable descriptor.

    The mode follows the umask. The file must not exist.

    Raises:
        OutputError: if it exists, cannot be created, or the disk has no room for all of it.
    """
    try:
        descriptor = _create(path)
        try:
            _allocate(descriptor, layout.size)
            write_at(descriptor, layout.header, 0)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from None
    return descriptor


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, 0o666)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls it takes; raises OSError."""
    view = memoryview(data).cast("B")
    while view.nbytes:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole: under a temporary name, flushed, then renamed.

    A link at `path` is replaced, not followed; the mode follows the umask.

    Raises:
        OutputError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = _create(temporary)
        try:
            write_at(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(path: Path) -> None:
    """Create a folder and its parents; one that exists is fine, a link in its place is not.

    Raises:
        OutputError: if it cannot be created, or is a link that would lead the output elsewhere.
    """
    if path.is_symlink():
        raise OutputError(f"{where(path)}: a link, where a folder was expected; remove it")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> OutputError:
    """What an operating system's error on writing means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{where(path)}: no space left on the disk; free some and run again")
    if isinstance(error, FileExistsError):
        return OutputError(f"{where(path)}: exists already; remove it or choose another folder")
    return OutputError(f"{where(path)}: cannot be written: {error}")
