"""Opening files that nobody vouches for: regular files only, no hangs, sizes known first."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mergewise.checkpoint._hub_name import shown_name
from mergewise.errors import CheckpointError


@dataclass(frozen=True)
class FileStamp:
    """What tells one state of a file from another: size in bytes, mtime in ns, inode, device."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def shown(text: object, limit: int = 120) -> str:
    """A value for a message: text quoted, control characters escaped, what is long cut."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else f"{quoted[:limit]}… ({len(quoted):,} characters)"


def where(path: Path | str) -> str:
    """A path for a message: as it is when printable, quoted when not.

    What lies in the Hub's cache is named as on the Hub, ``org/name@COMMIT/file``.
    """
    text = shown_name(path) or str(path)
    return text if text.isprintable() else shown(text, 300)


def stamp(path: Path) -> FileStamp | None:
    """The current state of `path`, or None if there is nothing to look at."""
    try:
        return FileStamp.of(path.stat())
    except (OSError, ValueError):
        return None


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file; the caller closes it.

    Raises:
        CheckpointError: if the file is absent, unreadable, or a folder, pipe, socket or device.
    """
    # O_NONBLOCK: opening a pipe nobody writes to would otherwise wait for ever
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise CheckpointError(f"{where(path)}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where(path)}: cannot be opened: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(
            f"{where(path)}: a regular file expected, got a folder, pipe or device"
        )
    return descriptor


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes at `offset`; fewer only at the end of the file."""
    parts = []
    while count > 0 and (part := os.pread(descriptor, count, offset)):
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def read_small(path: Path, limit: int) -> bytes:
    """The whole of a small file.

    Raises:
        CheckpointError: if it is no regular file, cannot be read, or exceeds `limit` bytes.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CheckpointError(
                f"{where(path)}: {size:,} bytes, where at most {limit:,} are plausible; "
                "is this the file you mean?"
            )
        return read_at(descriptor, size, 0)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, links followed, is in `folder` or in the hub cache that `folder` is part of.

    The cache of `huggingface_hub` keeps ``<repo>/snapshots/<commit>/name`` as links into
    ``<repo>/blobs``, which from 2.4 on may be links in turn, into ``<cache>/blobs/<2 digits>``.
    """
    try:
        target, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return False
    if target.is_relative_to(home):
        return True
    for commit in (home, *home.parents):
        if commit.parent.name == "snapshots":
            repo = commit.parent.parent
            shared = repo.parent / "blobs"
            return target.parent == repo / "blobs" or target.parent.parent == shared
    return False
