"""Patterns of module names from files that nobody vouches for (``rank_pattern``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LONGEST = 300
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_SLOW = re.compile(r"(?<!\\)\)[*+?{]|\\[1-9]|\(\?[^:]")
_PLAIN = re.compile(r"[\w.]+")


def pattern_problem(pattern: str) -> str | None:
    """Why a regular expression is not matched: broken, or it might take hours; else None."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression: {error}"
    repeats = len(_REPEAT.findall(pattern))
    if len(pattern) > _LONGEST or repeats > 2 or _SLOW.search(pattern):
        return (
            "a module's name, or a short regular expression with at most two repetitions and "
            "none of a group, expected"
        )
    return None


class Patterns:
    """Values by pattern; the first one that matches a name, or its end from a dot on, counts.

    This is PEFT's rule. Patterns must have no `pattern_problem`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = list(values.values())
        self._compiled = [re.compile(rf"(.*\.)?({pattern})$") for pattern in values]
        # thousands of full names are usual, so they are looked up by their last part
        self._by_end: dict[str, list[int]] = {}
        self._others: list[int] = []
        for i, pattern in enumerate(values):
            plain = _PLAIN.fullmatch(pattern)
            end = pattern.rpartition(".")[2]
            (self._by_end.setdefault(end, []) if plain else self._others).append(i)

    def get(self, module: str, default: Any) -> Any:
        """The value for a module's name."""
        near = self._by_end.get(module.rpartition(".")[2], [])
        for i in sorted([*near, *self._others]):
            if self._compiled[i].match(module):
                return self._values[i]
        return default
