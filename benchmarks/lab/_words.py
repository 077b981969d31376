"""Words of the pages: what names of rows mean, and titles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.lab._contenders import EXAMPLES, VARIANTS

_BASE = " (base)"


def explained(names: Iterable[str]) -> list[str]:
    """A bullet for the legend, none if there is nothing to explain.

    Args:
        names: of the table's rows.
    """
    present = set(names)
    said = [text for name, text in _variants() if {name, name + _BASE} & present]
    if any(name.endswith(_BASE) for name in present):
        said.append("(base): the base is given to a method that can do without")
    return [f"* **method**: after the name, parameters: {'; '.join(said)}"] if said else []


def capital(title: str) -> str:
    """With a capital, as the title of a page or a figure."""
    return title[:1].upper() + title[1:]


def _variants() -> Iterator[tuple[str, str]]:
    """A row's name, and what it stands for."""
    for method, variants in VARIANTS.items():
        for suffix, parameters in variants.items():
            if suffix:
                given = ", ".join(_given(key, value) for key, value in parameters.items())
                name = f"{method} {suffix}"
                yield name, f"{name}: {given or 'as set by default'}"


def _given(key: str, value: object) -> str:
    if key == EXAMPLES:
        return f"{value} examples"
    return f"`{key}` {value:g}" if isinstance(value, float) else f"`{key}` {value}"
