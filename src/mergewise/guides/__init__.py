"""Guides: evidence in, recipe out; one file a guide.

    write_recipe  collect what a guide needs, and write the explicit recipe into a file
    merge         merge as a recipe says, guided first if it has a ``guide``
    guide         the explicit recipe that a guide makes of a recipe and evidence
    collect_for   collect the evidence that a guide needs for a recipe
    all_guides    every guide by name

A guide never writes weights. What it finds stands in the recipe as plain numbers, and that recipe,
run on its own, gives the same bytes without the data.
"""

from __future__ import annotations

import functools

from mergewise._registry import chosen, registered
from mergewise.errors import GuideError
from mergewise.guides._ask import guide
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._collect import collect_for
from mergewise.guides._run import follow, merge, write_recipe
from mergewise.guides._training_log import STATE, Moment, metrics_of

__all__ = [
    "STATE",
    "Ask",
    "Expert",
    "Guide",
    "Guided",
    "Map",
    "Moment",
    "Needs",
    "all_guides",
    "collect_for",
    "follow",
    "get_guide",
    "guide",
    "merge",
    "metrics_of",
    "write_recipe",
]


@functools.cache
def all_guides() -> dict[str, Guide]:
    """Every registered guide by name, in alphabetical order.

    Raises:
        MergewiseError: if two guides claim one name.
    """
    base: type[Guide] = Guide  # type: ignore[type-abstract]
    return {name: cls() for name, cls in registered(__name__, base, "guides").items()}


def get_guide(name: str) -> Guide:
    """The guide called `name`.

    Raises:
        GuideError: with the closest names, if there is none.
    """
    return chosen("guide", name, all_guides(), "mergewise guides", GuideError)
