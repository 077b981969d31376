"""From how much layers changed to how much of each is kept; numbers only.

Everything is a table ``{component: {layer: number}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

Table = Mapping[str, Mapping[int, float]]
Scope = Literal["model", "component", "rank"]

_HALVINGS = 100


def shares(changes: Table, digits: int) -> dict[str, dict[int, float]]:
    """Each component's changes as shares over its layers, rounded to `digits` decimals.

    They sum to 1. A component that fewer layers have sums to accordingly less, so that the mean
    share is the same for all; one that did not change has shares of 0.
    """
    most = max((len(row) for row in changes.values()), default=0)

    def share(change: float, total: float, layers: int) -> float:
        return round(change / total * (layers / most), digits) if total > 0 else 0.0

    return {
        name: {layer: share(change, sum(row.values()), len(row)) for layer, change in row.items()}
        for name, row in changes.items()
    }


def spread(found: Table, low: float, high: float, scope: Scope) -> dict[str, dict[int, float]]:
    """Shares to densities from `low` (least share) to `high` (greatest).

    Args:
        scope: ``model`` maps all shares by one straight line, ``component`` those of each
            component by its own, ``rank`` by their rank among all; equal shares get equal
            densities, and where all are equal, the middle.
    """
    everything = [value for row in found.values() for value in row.values()]
    if scope == "rank":
        place = _ranks(everything)
        return _mapped(found, lambda value: low + place[value] * (high - low))
    if scope == "model":
        return _mapped(found, _line(everything, low, high))
    return {
        name: _mapped({name: row}, _line(list(row.values()), low, high))[name]
        for name, row in found.items()
    }


def hold_mean(
    densities: Table, elements: Table, target: float, least: float = 0.0, most: float = 1.0
) -> dict[str, dict[int, float]]:
    """The densities, all shifted by one number and cut to [least, most], with mean `target`.

    Args:
        elements: what each density counts for in the mean.
        target: between `least` and `most`.
    """
    pairs = [
        (density, elements[name][layer])
        for name, row in densities.items()
        for layer, density in row.items()
    ]

    def cut(value: float) -> float:
        return min(most, max(least, value))

    whole = sum(weight for _, weight in pairs)
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS if whole else 0):
        middle = (low + high) / 2
        if sum(cut(density + middle) * weight for density, weight in pairs) < target * whole:
            low = middle
        else:
            high = middle
    shift = (low + high) / 2
    return _mapped(densities, lambda density: cut(density + shift))


def _mapped(table: Table, change: Callable[[float], float]) -> dict[str, dict[int, float]]:
    return {
        name: {layer: change(value) for layer, value in row.items()} for name, row in table.items()
    }


def _line(values: list[float], low: float, high: float) -> Callable[[float], float]:
    """From the least to the greatest of `values` onto [low, high]."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    if least == most:
        return lambda value: (low + high) / 2
    return lambda value: low + (value - least) / (most - least) * (high - low)


def _ranks(values: list[float]) -> dict[float, float]:
    """Each value's mean place among all, from 0 to 1; 0.5 if all are equal."""
    ordered = sorted(values)
    last = max(1, len(ordered) - 1)
    first: dict[float, int] = {}
    count: dict[float, int] = {}
    for place, value in enumerate(ordered):
        first.setdefault(value, place)
        count[value] = count.get(value, 0) + 1
    if len(count) == 1:
        return dict.fromkeys(count, 0.5)
    return {value: (first[value] + (count[value] - 1) / 2) / last for value in count}
