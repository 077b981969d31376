"""Read a file from its beginning, never past its end, never more at once than asked for."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import read_at, where
from mergewise.errors import CheckpointError

_WINDOW = 1 << 18
MAX_HEADER = 512_000_000
"""Bytes; the largest vocabularies take about 30 million."""


class Cursor:
    """A position in an open file of `size` bytes."""

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        self._descriptor = descriptor
        self.size = size
        self.path = path
        self.position = 0
        self._window = b""
        self._start = 0

    @property
    def left(self) -> int:
        return self.size - self.position

    def refuse(self, what: str) -> CheckpointError:
        return CheckpointError(f"{where(self.path)}: {what}; fetch it again")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes; `what` they are, for the error if there are not so many."""
        at = self._ready(count, what)
        self.position += count
        return self._window[at : at + count]

    def skip(self, count: int, what: str) -> None:
        self._check(count, what)
        self.position += count

    def number(self, kind: str, what: str) -> Any:
        """A little-endian number by its `struct` code."""
        return struct.unpack("<" + kind, self.take(struct.calcsize(kind), what))[0]

    def text(self, limit: int, what: str) -> bytes:
        """A string: eight bytes of length, and so many bytes."""
        length = self.number("Q", what)
        if length > limit:
            raise self.refuse(f"{what} of {length:,} bytes, where at most {limit:,} are allowed")
        return self.take(length, what)

    def skip_texts(self, count: int, what: str) -> None:
        for _ in range(count):
            at = self._ready(8, what)
            self.position += 8
            self.skip(int.from_bytes(self._window[at : at + 8], "little"), what)

    def _check(self, count: int, what: str) -> None:
        if count > self.left:
            raise self.refuse(
                f"truncated in {what}: {count:,} bytes expected at byte {self.position:,}, "
                f"{self.left:,} follow"
            )
        if self.position + count > MAX_HEADER:
            raise self.refuse(f"a header of more than {MAX_HEADER:,} bytes ({what})")

    def _ready(self, count: int, what: str) -> int:
        """Where the next bytes are in the window, filled anew if they are not."""
        self._check(count, what)
        at = self.position - self._start
        if not 0 <= at <= len(self._window) - count:
            self._start, at = self.position, 0
            self._window = read_at(
                self._descriptor, min(max(_WINDOW, count), self.left), self.position
            )
            if len(self._window) < count:
                raise self.refuse(f"truncated while {what} was read")
        return at
