"""What was asked for: statistics by name, with their options checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergewise.errors import EvidenceError
from mergewise.evidence.statistics import get_statistic
from mergewise.evidence.statistics._base import Statistic
from mergewise.methods import REQUIRED, Settings


@dataclass(frozen=True)
class Request:
    """A statistic to be collected.

    Attributes:
        options: every one of its options, checked and converted.
    """

    statistic: Statistic
    options: Mapping[str, Any]

    @property
    def settings(self) -> Settings:
        """The options by attribute."""
        return Settings(self.options)


def requests(
    names: str | Iterable[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Request]:
    """Statistics by name, each once.

    Args:
        names: separated by commas, or one by one.
        options: by statistic, then name.

    Raises:
        EvidenceError: for an unknown statistic, option or value.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    wanted = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not wanted:
        raise EvidenceError("no statistic named; `mergewise collect --list` shows what there is")
    given = dict(options or {})
    found = [_request(get_statistic(name), given.pop(name, {})) for name in wanted]
    for name in given:
        raise EvidenceError(
            f"options for {name!r}, which is not collected; collected: {', '.join(wanted)}"
        )
    return found


def _request(statistic: Statistic, given: Mapping[str, Any]) -> Request:
    values = {}
    for name in given:
        if name not in statistic.params:
            close = difflib.get_close_matches(name, statistic.params, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            have = ", ".join(statistic.params) or "none"
            raise EvidenceError(
                f"{statistic.name} has no option {name!r}; {hint}its options: {have}"
            )
    for name, param in statistic.params.items():
        value = given.get(name, param.default)
        if value is REQUIRED:
            raise EvidenceError(f"{statistic.name}: the option {name} is required: {param.help}")
        if name in given and (problem := param.problem(value)):
            raise EvidenceError(f"{statistic.name}.{name}: {problem}")
        values[name] = param.convert(value)
    return Request(statistic, values)
