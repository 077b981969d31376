"""Downloads, as people see them: what comes and where to, then a bar or a line now and then."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from mergewise._units import show_bytes
from mergewise.cli._output import Output
from mergewise.cli._progress import Report, progress


@contextlib.contextmanager
def downloads_shown(out: Output) -> Iterator[None]:
    """Show every download that the library makes while a ``with`` lasts."""
    from mergewise.checkpoint import downloads

    if out.quiet:
        yield
        return
    with _Downloads(out) as shown, downloads(shown):
        yield


class _Downloads:
    """One after another: each begins when it is first reported, and ends when all has come."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._open: Report | None = None
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> _Downloads:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._open is None and done < total:
                self._out.note(f"downloading {show_bytes(total)} from the Hub into its cache")
                self._open = self._stack.enter_context(progress(self._out, "downloading"))
            if self._open is not None:
                self._open(done, total)
            if done >= total:
                self._stack.close()
                self._open = None
