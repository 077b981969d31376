"""SHA-256 of large files, remembered while size and times stay as they were."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from mergewise.errors import MergewiseError

REMEMBERED_FROM = 1 << 26
"""Bytes; a smaller file is read again as fast as the note on it."""
_SETTLED = 2_000_000_000


def weights_hash(path: Path) -> str:
    """SHA-256 of a file's every byte, in hexadecimal.

    The quick fingerprint of provenance files samples 4 MiB, and may miss that one bias differs;
    scores of one model must not be taken for another's. A large file that has the device, inode,
    size and times of the last call is not read again.

    Raises:
        CheckpointError: if it cannot be read.
    """
    from mergewise.checkpoint import sha256_file

    try:
        state = path.stat()
    except OSError:
        return sha256_file(path)  # which says what is wrong
    mark = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    # what was changed just now may be changed again within one tick of the clock
    settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED
    if state.st_size < REMEMBERED_FROM or not settled:
        return sha256_file(path)
    note = _note(path)
    found = _remembered(note, mark)
    if found is None:
        found = sha256_file(path)
        _remember(note, mark, found)
    return found


def _note(path: Path) -> Path:
    from mergewise.constants import cache_dir

    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return cache_dir() / "hashes" / f"{name[:32]}.json"


def _remembered(note: Path, mark: list[int]) -> str | None:
    from mergewise.checkpoint import read_small

    try:
        known = json.loads(read_small(note, 1 << 12))
        return str(known["sha256"]) if known["file"] == mark else None
    except (MergewiseError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _remember(note: Path, mark: list[int], found: str) -> None:
    from mergewise.checkpoint import make_folder, write_file

    try:
        make_folder(note.parent)
        write_file(note, json.dumps({"file": mark, "sha256": found}).encode())
    except MergewiseError:
        return  # it is read again next time
