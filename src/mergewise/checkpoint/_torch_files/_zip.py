"""Where the members of a PyTorch zip file lie, read without trusting a byte of it.

Only what torch writes is accepted: one disk, nothing compressed or encrypted, no member inside
another, every local header in agreement with the central directory. Source: PKWARE's APPNOTE.TXT,
sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from mergewise.checkpoint._files import read_at, shown, where
from mergewise.errors import CheckpointError

MAX_MEMBERS = 400_000
MAX_DIRECTORY = 64_000_000
"""Bytes; a member takes about 80."""
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_COMMENT = 65_535


@dataclass(frozen=True)
class Member:
    """A member's bytes: from `start` to `end` in the file."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def read_members(descriptor: int, size: int, path: Path) -> dict[str, Member]:
    """The members of a zip file of `size` bytes, by name.

    Raises:
        CheckpointError: if it is damaged, compressed, encrypted, or larger than is plausible.
        OSError: if it cannot be read.
    """
    try:
        entries, end = _central(descriptor, size)
        return _placed(descriptor, entries, end)
    except _BadZipError as error:
        raise CheckpointError(f"{where(path)}: {error}; fetch it again") from None


class _BadZipError(Exception):
    pass


@dataclass(frozen=True)
class _Entry:
    name: str
    at: int
    size: int


def _central(descriptor: int, size: int) -> tuple[list[_Entry], int]:
    """What the central directory lists, and where it begins."""
    count, length, start = _end_record(descriptor, size)
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        raise _BadZipError(f"a zip file with {count:,} members, listed in {length:,} bytes")
    if start + length > size:
        raise _BadZipError("truncated zip file: its list of members lies behind its end")
    raw = read_at(descriptor, length, start)
    entries, at = [], 0
    for _ in range(count):
        entry, at = _entry(raw, at)
        entries.append(entry)
    if at != length:
        raise _BadZipError("damaged zip file: its list of members has another length")
    return entries, start


def _end_record(descriptor: int, size: int) -> tuple[int, int, int]:
    """Number of members, length and start of the central directory."""
    window = min(size, _END.size + _COMMENT)
    tail = read_at(descriptor, window, size - window)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _BadZipError("truncated zip file: its list of members is missing")
    _, disk, first, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail) or disk or first or here != count:
        raise _BadZipError("damaged zip file: its last record does not fit")
    if count != _U16 and length != _U32 and start != _U32:
        return count, length, start
    locator = size - window + at - _LOCATOR.size
    return _end_record_64(descriptor, locator)


def _end_record_64(descriptor: int, locator: int) -> tuple[int, int, int]:
    raw = read_at(descriptor, _LOCATOR.size, locator) if locator >= 0 else b""
    if len(raw) < _LOCATOR.size or not raw.startswith(b"PK\x06\x07"):
        raise _BadZipError("damaged zip file: it lacks the record of a large file")
    _, _, at, disks = _LOCATOR.unpack(raw)
    raw = read_at(descriptor, _END64.size, at) if at < locator else b""
    if len(raw) < _END64.size or not raw.startswith(b"PK\x06\x06") or disks != 1:
        raise _BadZipError("damaged zip file: it lacks the record of a large file")
    _, _, _, _, disk, first, here, count, length, start = _END64.unpack(raw)
    if disk or first or here != count:
        raise _BadZipError("damaged zip file: its record of a large file does not fit")
    return count, length, start


def _entry(raw: bytes, at: int) -> tuple[_Entry, int]:
    if len(raw) - at < _CENTRAL.size or raw[at : at + 4] != b"PK\x01\x02":
        raise _BadZipError("damaged zip file: its list of members breaks off")
    fields = _CENTRAL.unpack_from(raw, at)
    flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
    lengths, start = fields[10:13], fields[16]
    end = at + _CENTRAL.size + sum(lengths)
    first = at + _CENTRAL.size
    if end > len(raw):
        raise _BadZipError("damaged zip file: its list of members breaks off")
    name = raw[first : first + lengths[0]].decode("utf-8", "replace")
    extra = raw[first + lengths[0] : first + lengths[0] + lengths[1]]
    size, packed, start = _large(extra, size, packed, start)
    if flags & 1 or method != 0 or packed != size:
        raise _BadZipError(
            f"member {shown(name)} is compressed or encrypted, which torch never does"
        )
    return _Entry(name, start, size), end


def _large(extra: bytes, *values: int) -> tuple[int, ...]:
    """The values with those of 32 set bits taken from the extra field of large files."""
    if _U32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            wanted = [i for i, value in enumerate(values) if value == _U32]
            if len(body) >= 8 * len(wanted):
                found = struct.unpack_from(f"<{len(wanted)}Q", body)
                large = dict(zip(wanted, found, strict=True))
                return tuple(large.get(i, value) for i, value in enumerate(values))
        at += 4 + length
    raise _BadZipError("damaged zip file: a large member without its size")


def _placed(descriptor: int, entries: list[_Entry], end: int) -> dict[str, Member]:
    """Members by name, after a look at every local header; none may reach into the next."""
    found: dict[str, Member] = {}
    position = 0
    for entry in sorted(entries, key=lambda e: e.at):
        if entry.at < position:
            raise _BadZipError(f"damaged zip file: member {shown(entry.name)} overlaps another")
        start = _data_start(descriptor, entry)
        position = start + entry.size
        if position > end:
            raise _BadZipError(f"truncated zip file: member {shown(entry.name)} has no end")
        if entry.name in found:
            raise _BadZipError(f"damaged zip file: member {shown(entry.name)} occurs twice")
        found[entry.name] = Member(entry.name, start, position)
    return found


def _data_start(descriptor: int, entry: _Entry) -> int:
    raw = read_at(descriptor, _LOCAL.size, entry.at)
    if len(raw) < _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        raise _BadZipError(f"damaged zip file: member {shown(entry.name)} is not where it is said")
    fields = _LOCAL.unpack(raw)
    method, named, extra = int(fields[3]), int(fields[9]), int(fields[10])
    name = read_at(descriptor, named, entry.at + _LOCAL.size)
    if method != 0 or name.decode("utf-8", "replace") != entry.name:
        raise _BadZipError(f"damaged zip file: member {shown(entry.name)} has two names or kinds")
    return entry.at + _LOCAL.size + named + extra
