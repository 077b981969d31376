"""Statistics of a model on data; one file a statistic."""

from __future__ import annotations

import functools

from mergewise._registry import chosen, registered
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Pass, Statistic, Sums

__all__ = ["Pass", "Statistic", "Sums", "all_statistics", "get_statistic"]


@functools.cache
def all_statistics() -> dict[str, Statistic]:
    """Every registered statistic by name, in alphabetical order.

    Raises:
        MergewiseError: if two statistics claim one name.
    """
    base: type[Statistic] = Statistic  # type: ignore[type-abstract]
    return {n: cls() for n, cls in registered(__name__, base, "statistics").items()}


def get_statistic(name: str) -> Statistic:
    """The statistic called `name`.

    Raises:
        EvidenceError: with the closest names, if there is none.
    """
    return chosen("statistic", name, all_statistics(), "mergewise collect --list", EvidenceError)
