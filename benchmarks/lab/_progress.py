"""One line of progress with the time left, on a terminal or in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EVERY_TERMINAL, EVERY_LOG = 0.2, 15.0
"""Seconds between updates."""


class Progress:
    """Counts steps of about equal cost; prints ``label 40/100, 12 s left`` now and then."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total
        self.done = 0
        self.free = 0
        self._live = console.is_terminal and not console.is_dumb_terminal
        self._every = EVERY_TERMINAL if self._live else EVERY_LOG

    def __enter__(self) -> Progress:
        self._start = self._shown = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live and not self.console.quiet:
            self.console.file.write("\r\x1b[K")
            self.console.file.flush()

    def step(self, note: str = "", *, free: bool = False) -> None:
        """One step is done; `free` ones (read from a cache) do not count for the time left."""
        self.done += 1
        self.free += free
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._print(now, note)

    def _print(self, now: float, note: str) -> None:
        paid = max(1, self.done - self.free)
        left = (self.total - self.done) * (now - self._start) / paid
        text = f"{self.label} {self.done}/{self.total}, {clock(left)} left"
        text += f" ({note})" if note else ""
        if not self._live:
            self.console.print(text, markup=False, highlight=False)
        elif not self.console.quiet:
            self.console.file.write(f"\r\x1b[K{text[: self.console.width - 1]}")
            self.console.file.flush()


def clock(seconds: float) -> str:
    """A duration in words: ``8 s``, ``3 min 20 s``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
