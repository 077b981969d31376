"""Progress of scores on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergewise.cli._output import Output
from mergewise.cli._progress import EVERY, show_seconds

if TYPE_CHECKING:
    from mergewise.evidence import Step

Report = Callable[["Step"], None]


@contextmanager
def steps(out: Output) -> Iterator[Report]:
    """What to call with each step of an evaluation; does nothing with ``-q``."""
    if out.quiet:
        yield lambda step: None
    elif sys.stderr.isatty() and not out.console(stderr=True).is_dumb_terminal:
        with _bar(out) as report:
            yield report
    else:
        yield StepLines(out)


@contextmanager
def _bar(out: Output) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(step: Step) -> None:
            bar.update(
                task, total=step.total, completed=_completed(step), description=describe(step)
            )

        yield report


def _completed(step: Step) -> float:
    return step.number + (step.done / step.amount if step.amount else 0.0)


def describe(step: Step) -> str:
    """``3 of 9: ties on maths, 40 of 200``."""
    inside = f", {step.done:,} of {step.amount:,}" if step.amount else ""
    return f"{step.number + 1} of {step.total}: {step.model} on {step.task}{inside}"


class StepLines:
    """Prints a line at most every `EVERY` seconds."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._start = self._last = time.monotonic()

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            part = _completed(step) / step.total
            left = (now - self._start) * (1 - part) / part if part else None
            told = "" if left is None else f", about {show_seconds(left)} left"
            self._out.note(f"{describe(step)}{told}")
