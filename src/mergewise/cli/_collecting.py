"""Progress of a collection on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from mergewise.cli._output import Output
from mergewise.cli._progress import EVERY, progress, show_seconds

if TYPE_CHECKING:
    from mergewise.evidence.statistics import Progress

Report = Callable[["Progress"], None]


@contextmanager
def collecting(out: Output) -> Iterator[Report | None]:
    """What to call after every batch; None with ``-q``."""
    if out.quiet:
        yield None
    elif sys.stderr.isatty() and not out.console(stderr=True).is_dumb_terminal:
        with _bar(out) as report:
            yield report
    else:
        yield _Lines(out)


@contextmanager
def in_turn(out: Output) -> Iterator[tuple[Report | None, Callable[[int, int], None] | None]]:
    """What to call as statistics are collected, and as weights are read.

    A terminal shows one bar at a time: that of what was called last.
    """
    if out.quiet:
        yield None, None
        return
    shown = _Shown(out)
    try:
        yield shown.collected, shown.read
    finally:
        shown.close()


class _Shown:
    def __init__(self, out: Output) -> None:
        self._out = out
        self._stack = ExitStack()
        self._kind = ""
        self._report: Callable[..., None] | None = None

    def collected(self, at: Progress) -> None:
        self._turn("collecting")(at)

    def read(self, done: int, total: int) -> None:
        self._turn("reading weights")(done, total)

    def _turn(self, kind: str) -> Callable[..., None]:
        if kind != self._kind:
            self.close()
            bar = collecting(self._out) if kind == "collecting" else progress(self._out, kind)
            self._report, self._kind = self._stack.enter_context(bar), kind
        assert self._report is not None
        return self._report

    def close(self) -> None:
        self._stack.close()
        self._kind = ""


@contextmanager
def _bar(out: Output) -> Iterator[Report]:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=out.console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the model", total=None)

        def report(at: Progress) -> None:
            bar.update(task, total=at.total, completed=at.done, description=describe(at))

        yield report


class _Lines:
    """Prints a line at most every `EVERY` seconds."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last = time.monotonic()

    def __call__(self, at: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            self._out.note(describe(at))


def describe(at: Progress) -> str:
    """``forward: 40 of 200 records, 5,120 tokens, 410 tokens/s, 9 s left``."""
    total = "" if at.total is None else f" of {at.total:,}"
    rate = at.tokens / max(at.seconds, 1e-9)
    left = ""
    if at.total is not None and at.done:
        seconds = at.seconds / at.done * max(0, at.total - at.done)
        left = f", {show_seconds(seconds)} left"
    return (
        f"{at.stage}: {at.done:,}{total} records, {at.tokens:,} tokens, {rate:,.0f} tokens/s{left}"
    )
