"""The weights in a file of ``torch.save``: names and byte ranges; no data is read, nothing is run.

Both formats: the zip files of torch 1.6 and later, and what came before, a row of pickles followed
by the elements. A tensor that is contiguous in memory is a range of the file, as in a safetensors
file. Sources: torch/serialization.py (`_save`, `_legacy_save`, `_legacy_load`), torch/_utils.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint._dtypes import BITS, byte_count
from mergewise.checkpoint._files import FileStamp, open_regular, read_at, shown, where
from mergewise.checkpoint._safetensors import MAX_NAME, MAX_TENSORS, Header, TensorInfo
from mergewise.checkpoint._torch_files._machine import TruncatedPickleError, read_pickle
from mergewise.checkpoint._torch_files._state_dict import find_weights
from mergewise.checkpoint._torch_files._values import Stored
from mergewise.checkpoint._torch_files._zip import Member, read_members
from mergewise.errors import CheckpointError

MAX_PICKLE = 64_000_000
"""Bytes of the pickle that describes the tensors; each takes about 200."""
_FIRST_WINDOW = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: the weights as a `Header`, and a warning if it holds more."""

    header: Header
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Content:
    """The value that was saved, and where each storage lies."""

    value: Any
    storages: Mapping[str, Member]


def read_torch_file(path: Path) -> TorchFile:
    """Read what a PyTorch file says about its tensors.

    Raises:
        CheckpointError: if it is damaged, truncated or hostile, if it holds something else than
            weights (TorchScript, a whole model), or if a tensor is no plain range of the file.
    """
    descriptor = open_regular(path)
    try:
        stamp = FileStamp.of(os.fstat(descriptor))
        content = _content(descriptor, stamp.size, path)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)
    weights, warnings = find_weights(content.value, path)
    if len(weights) > MAX_TENSORS:
        raise CheckpointError(f"{where(path)}: more than {MAX_TENSORS:,} tensors; split the file")
    found = [_info(name, stored, content, path) for name, stored in weights.items()]
    tensors = {info.name: info for info in sorted(found, key=lambda t: (t.start, t.end))}
    start = min((info.start for info in found), default=0)
    return TorchFile(Header(tensors, {}, stamp.size, start, stamp), warnings)


def _content(descriptor: int, size: int, path: Path) -> _Content:
    first = read_at(descriptor, len(_LFS), 0)
    if first == _LFS:
        raise CheckpointError(
            f"{where(path)}: a Git LFS pointer, not the file itself; run `git lfs pull` there"
        )
    if first.startswith(b"PK\x03\x04"):
        return _zipped(descriptor, size, path)
    if first[:1] == b"\x80":
        return _legacy(descriptor, size, path)
    raise CheckpointError(
        f"{where(path)}: no file of torch.save (it begins with {first[:8]!r}); if it was saved "
        "before torch 0.4, load it there and save it again"
    )


def _zipped(descriptor: int, size: int, path: Path) -> _Content:
    members = read_members(descriptor, size, path)
    root = next((n.removesuffix("data.pkl") for n in members if n.endswith("/data.pkl")), None)
    if root is None or root.count("/") != 1:
        raise CheckpointError(f"{where(path)}: a zip file, but not of torch.save: no data.pkl")
    if f"{root}constants.pkl" in members or any(n.startswith(f"{root}code/") for n in members):
        raise CheckpointError(
            f"{where(path)}: a TorchScript program, not weights alone; where you trust the file, "
            "load it (torch.jit.load) and save its state_dict()"
        )
    if order := members.get(f"{root}byteorder"):
        _check_order(read_at(descriptor, min(order.size, 16), order.start), path)
    pickled = members[f"{root}data.pkl"]
    _check_pickle_size(pickled.size, path)
    try:
        value, _ = read_pickle(read_at(descriptor, pickled.size, pickled.start), 0, path)
    except TruncatedPickleError:
        raise CheckpointError(f"{where(path)}: its data.pkl breaks off; fetch it again") from None
    start = f"{root}data/"
    storages = {n.removeprefix(start): m for n, m in members.items() if n.startswith(start)}
    return _Content(value, storages)


def _check_order(order: bytes, path: Path) -> None:
    if order != b"little":
        raise CheckpointError(
            f"{where(path)}: its numbers are stored in {shown(order.decode('latin-1'))} order, "
            "little-endian is read; load it with torch and save it again"
        )


def _check_pickle_size(size: int, path: Path) -> None:
    if size > MAX_PICKLE:
        raise CheckpointError(
            f"{where(path)}: its list of tensors takes {size:,} bytes, where at most "
            f"{MAX_PICKLE:,} are plausible; save the state dict alone"
        )


def _legacy(descriptor: int, size: int, path: Path) -> _Content:
    window = _FIRST_WINDOW
    while True:
        data = read_at(descriptor, min(window, size), 0)
        try:
            return _legacy_content(data, descriptor, size, path)
        except TruncatedPickleError:
            if len(data) >= size:
                raise CheckpointError(f"{where(path)}: truncated; fetch it again") from None
            _check_pickle_size(window, path)
            window *= 4


def _legacy_content(data: bytes, descriptor: int, size: int, path: Path) -> _Content:
    magic, at = read_pickle(data, 0, path)
    if magic != _LEGACY_MAGIC:
        raise CheckpointError(f"{where(path)}: a pickle, but not one of torch.save")
    protocol, at = read_pickle(data, at, path)
    system, at = read_pickle(data, at, path)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError(f"{where(path)}: of an unknown version of torch.save")
    if system.get("little_endian") is not True:
        _check_order(b"big", path)
    value, at = read_pickle(data, at, path)
    keys, at = read_pickle(data, at, path)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{where(path)}: damaged: a list of storages expected")
    return _Content(value, _legacy_storages(keys, _kinds(value), at, descriptor, size, path))


def _kinds(value: Any) -> dict[str, tuple[str, int]]:
    """Element type and number of every storage that a tensor uses, by key."""
    found: dict[str, tuple[str, int]] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Stored) and item.storage:
            found[item.storage.key] = (item.storage.dtype, item.storage.count)
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
    return found


def _legacy_storages(
    keys: list[str],
    kinds: Mapping[str, tuple[str, int]],
    at: int,
    descriptor: int,
    size: int,
    path: Path,
) -> dict[str, Member]:
    """Each storage: eight bytes with its number of elements, then those."""
    found: dict[str, Member] = {}
    for key in keys:
        count = int.from_bytes(read_at(descriptor, 8, at), "little")
        dtype, expected = kinds.get(key, ("", -1))
        if not dtype or count != expected or key in found:
            raise CheckpointError(
                f"{where(path)}: storage {shown(key)}: {count:,} elements, {expected:,} expected; "
                "the file is damaged or truncated, fetch it again"
            )
        end = at + 8 + count * BITS[dtype] // 8
        if end > size:
            raise CheckpointError(f"{where(path)}: truncated in storage {shown(key)}")
        found[key] = Member(key, at + 8, end)
        at = end
    if at != size:
        raise CheckpointError(f"{where(path)}: {size - at:,} bytes follow its last storage")
    return found


def _info(name: str, stored: Stored, content: _Content, path: Path) -> TensorInfo:
    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{where(path)}: tensor {shown(name)}: {what}")

    again = "save it again as a plain, contiguous tensor, best as safetensors"
    if not 0 < len(name) <= MAX_NAME or not _encodable(name):
        raise bad("no name that can be stored")
    if stored.odd or stored.storage is None:
        raise bad(f"{stored.odd}, and is not read; {again}")
    storage = stored.storage
    member = content.storages.get(storage.key)
    if not storage.dtype or member is None:
        raise bad("its data are not in the file; fetch it again")
    if storage.view:
        raise bad(f"it is stored as a view of another; {again}")
    if member.size * 8 != storage.count * BITS[storage.dtype]:
        raise bad(f"{storage.count:,} elements do not fill {member.size:,} bytes; fetch it again")
    length = byte_count(stored.dtype, stored.shape)
    if length is None:
        raise bad(f"shape {list(stored.shape)} cannot be")
    if length and not _contiguous(stored):
        raise bad(f"it is not contiguous (strides {list(stored.stride)}); {again}")
    start = member.start + stored.offset * BITS[stored.dtype] // 8
    if not length:
        start = member.start
    if start + length > member.end:
        raise bad("it reaches behind its data; the file is damaged, fetch it again")
    return TensorInfo(name, stored.dtype, stored.shape, start, start + length)


def _contiguous(stored: Stored) -> bool:
    step = 1
    for count, stride in zip(reversed(stored.shape), reversed(stored.stride), strict=True):
        if count != 1 and stride != step:
            return False
        step *= count
    return True


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
