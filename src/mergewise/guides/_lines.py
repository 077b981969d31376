"""A line now and then about how far a long step is."""

from __future__ import annotations

import time

from mergewise.guides._base import Ask

_EVERY = 5.0
"""Seconds."""


class Lines:
    """Passes a line on if the last one, or the beginning, was some seconds ago."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            self._ask.tell(line)
