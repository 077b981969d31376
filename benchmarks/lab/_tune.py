"""Choose a scale on the validation split, with the same number of tries for every contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Attributes:
    value: the scale that did best.
    quality: how well it did on validation, more is better.
    tries: by scale, for the JSON.
    """

    value: float
    quality: float
    tries: dict[float, float]


def choose(
    default: float | None, grid: Sequence[float], quality: Callable[[float], float | None]
) -> Choice | None:
    """The best of the grid; of equals the one nearest the default.

    Args:
        quality: scores a scale on validation; None or NaN if the merge cannot be scored there.

    Returns:
        None if no scale could be scored.
    """
    tries = {value: quality(value) for value in grid}
    known = {v: q for v, q in tries.items() if q is not None and q == q}
    if not known:
        return None
    centre = default if default is not None else grid[0]
    best = max(known, key=lambda v: (known[v], -abs(v - centre)))
    return Choice(best, known[best], known)
