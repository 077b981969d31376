"""Values as text for people: names from files made harmless, numbers made short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_FEW = 6


def clean(text: str) -> str:
    """`text` with everything that could steer a terminal written as an escape.

    Names of tensors and models come from files, and may hold anything.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int, noun: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_value(value: Any) -> str:
    """A parameter's value as a recipe would write it, floats to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else clean(str(value))


def show_range(values: Iterable[Any]) -> str:
    """The values of several tensors: one if all agree, each of a few, else ``low … high``."""
    given = list(values)
    distinct = list(dict.fromkeys(given))
    if len(distinct) > 1 and len(given) <= _FEW:
        return ", ".join(show_value(v) for v in given)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in distinct)
    if numbers and len(distinct) > 1:
        return f"{show_value(min(distinct))} … {show_value(max(distinct))}"
    return ", ".join(show_value(v) for v in distinct)


def show_shape(shape: Iterable[int]) -> str:
    """``[1024, 128]``."""
    return str(list(shape))


def show_count(number: int) -> str:
    """A number of parameters: ``1.25 M``; small ones in full."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= factor * 0.9995:
            return f"{number / factor:.3g} {unit}"
    return f"{number:,}"
