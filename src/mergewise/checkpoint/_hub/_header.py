"""Headers of safetensors files that are on the Hub, read by range; and what came, compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mergewise.checkpoint._files import FileStamp, where
from mergewise.checkpoint._hub import _client
from mergewise.checkpoint._hub._repo import AwayFile, away
from mergewise.checkpoint._safetensors import Header, TensorInfo, parse_header, read_header
from mergewise.errors import HubError

_FIRST = 131_072
"""Bytes of the first request; most headers are shorter."""
_headers: dict[Path, Header] = {}


@dataclass(frozen=True)
class AwayStamp(FileStamp):
    """Stands for a file that is not here yet, so it equals no file's state.

    Attributes:
        tensors: a hash of the header that was planned with; "" if there was none.
    """

    file: AwayFile
    tensors: str = ""


def header_of(path: Path) -> Header:
    """The header of a safetensors file, here or on the Hub; raises as `read_header`."""
    found = away(path)
    return read_header(path) if found is None else _remote(found)


def _remote(found: AwayFile) -> Header:
    repo, file = found.repo, found.file
    key = found.path
    if key not in _headers:
        place = f"{repo.name.repo}@{repo.commit[:12]}: {file.name}"
        first = _client.read_range(repo.name.repo, repo.commit, file, 0, min(_FIRST, file.size))

        def read(count: int, offset: int) -> bytes:
            have = first[offset : offset + count]
            rest = min(count, file.size - offset) - len(have)
            at = offset + len(have)
            return have + _client.read_range(repo.name.repo, repo.commit, file, at, rest)

        blank = FileStamp(file.size, 0, 0, 0)
        header = parse_header(read, blank, Path(place))
        stamp = AwayStamp(file.size, 0, 0, 0, found, _digest(header.tensors))
        _headers[key] = Header(
            header.tensors, header.metadata, header.file_size, header.data_start, stamp
        )
    return _headers[key]


def compared(path: Path, planned: AwayStamp, *, at: Path | None = None) -> FileStamp:
    """The stamp of a file that has come, seen to be the one that was planned with.

    Args:
        path: where it was planned to be; `at` where it is, if elsewhere.

    Raises:
        HubError: if its header is another one.
    """
    place = at or path
    header = read_header(place)
    if planned.tensors and _digest(header.tensors) != planned.tensors:
        raise HubError(
            f"{where(path)}: the file that the Hub sent has another header than it showed before; "
            "remove it, and run the same command again"
        )
    return header.stamp


def _digest(tensors: dict[str, TensorInfo]) -> str:
    listed = [[t.name, t.dtype, t.shape, t.start, t.end] for t in tensors.values()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
