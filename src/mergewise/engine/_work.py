"""How work is described, apart from who does it.

Work is a generator that yields `Parallel` requests (a function and a list of items) and receives
the answers in the items' order. A scheduler runs the items on any number of workers; since sums
are added in that order, results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parallel:
    """A request: apply `function` to every item; the answers come back in the items' order."""

    function: Callable[[Any], Any]
    items: Sequence[Any]


Range = tuple[int, int]
"""A run of elements: (start, size)."""

Work = Generator[Parallel, list[Any], Any]
