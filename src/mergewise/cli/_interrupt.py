"""Stopping a merge, and saying how to go on."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from mergewise.cli._output import count

PATIENCE = 5.0
"""Seconds in which the work in progress should have stopped."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does, so that the lock is released and files are kept.

    More of them within `PATIENCE` seconds change nothing: they would end the main thread while
    workers still compute, and torch then aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            raise KeyboardInterrupt

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    heard = [s for s, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def progress_kept(out: Path) -> str | None:
    """What an unfinished merge in `out` has done, in words; None if there is no such merge."""
    from mergewise.engine import WORK, complete_tensors

    try:
        journal = json.loads((out / WORK / "journal.json").read_text("utf-8"))
        files, tensors = len(journal["done"]), complete_tensors(out)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    parts = [count(files, "finished file")] if files or not tensors else []
    parts += [count(tensors, "finished tensor")] if tensors else []
    return " and ".join(parts)


def how_to_continue(out: Path, arguments: Sequence[str]) -> str:
    """The last words of an interrupted merge: what is kept, and the command that goes on."""
    kept = progress_kept(out)
    command = shlex.join(["mergewise", *(a for a in arguments if a != "--restart")])
    if kept is None:
        return f"interrupted before the first tensor was finished; begin again with\n  {command}"
    return f"interrupted; {kept} kept in {out}. Continue with\n  {command}"
