"""How long arithmetic in a thread of the engine learns that the run is being stopped.

Ctrl-C reaches the main thread alone. Work is dealt in blocks, after each of which a thread looks;
a method that iterates for minutes on one tensor asks here between its steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mergewise.errors import InterruptedMergeError

_thread = threading.local()


@contextmanager
def stopped_by(asked: Callable[[], bool]) -> Iterator[None]:
    """In this thread, `stop_if_asked` raises once `asked()` is true."""
    before = getattr(_thread, "asked", None)
    _thread.asked = asked
    try:
        yield
    finally:
        _thread.asked = before


def stop_if_asked() -> None:
    """Go on, unless the run that this thread works for has been stopped.

    Raises:
        InterruptedMergeError: if it has.
    """
    asked = getattr(_thread, "asked", None)
    if asked is not None and asked():
        raise InterruptedMergeError("interrupted")
