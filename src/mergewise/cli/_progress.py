"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mergewise._units import show_bytes
from mergewise.cli._output import Output

EVERY = 5.0
"""Seconds between lines."""

Report = Callable[[int, int], None]


@contextmanager
def progress(out: Output, doing: str = "merging", unit: str = "") -> Iterator[Report | None]:
    """What to call with (bytes done, bytes in all), from any thread; None with ``-q``.

    Args:
        unit: what is counted instead of bytes, such as ``weights``.
    """
    if out.quiet:
        yield None
    elif sys.stderr.isatty() and not out.console(stderr=True).is_dumb_terminal:
        with _bar(out, doing, unit) as report:
            yield report
    else:
        yield Lines(out, unit)


@contextmanager
def _bar(out: Output, doing: str, unit: str) -> Iterator[Report]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    sizes = (DownloadColumn(), TransferSpeedColumn())
    counted = (MofNCompleteColumn(), TextColumn(unit)) if unit else sizes
    columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
    with Progress(*columns, console=out.console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=doing)

        yield report


class Lines:
    """Prints a line at most every `EVERY` seconds.

    What is done at the first report, if that comes late, is left out of the rate: it was taken over
    from an earlier run, or work of another kind came first.
    """

    def __init__(self, out: Output, unit: str = "") -> None:
        self._out, self._unit = out, unit
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self._before = 0
        self._begun = False

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._begun and now - self._start > EVERY > 0:
                self._start, self._last, self._before = now, now, done
            self._begun = True
            if now - self._last < EVERY or done >= total:
                return
            self._last = now
            spent = now - self._start
            self._out.note(describe(done, total, spent, self._unit, self._before))


def describe(done: int, total: int, seconds: float, unit: str = "", before: int = 0) -> str:
    """``1.2 GB of 4.4 GB, 350 MB/s, 9 s left``, or ``12 of 154 weights, 9 s left``."""
    rate = (done - before) / max(seconds, 1e-9)
    left = f", {show_seconds((total - done) / rate)} left" if rate else ""
    if unit:
        return f"{done:,} of {total:,} {unit}{left}"
    return f"{show_bytes(done)} of {show_bytes(total)}, {show_bytes(rate)}/s{left}"


def show_seconds(seconds: float) -> str:
    """``9 s``, ``2 min 5 s``, ``1 h 3 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
