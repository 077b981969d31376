"""Settings of a guide or a transform: what was given, checked against what is declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mergewise.errors import MergewiseError
from mergewise.methods import REQUIRED, Param
from mergewise.recipe import suggest


class Declaring(Protocol):
    """Something with a name and parameters."""

    @property
    def name(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Param]: ...


def checked(
    owner: Declaring, given: Mapping[str, Any], error: type[MergewiseError]
) -> dict[str, Any]:
    """Every parameter's value, converted; the default where nothing was given.

    Raises:
        MergewiseError: of the type `error`, for an unknown name, a value that is not allowed, or
            a required one that is missing.
    """
    for name in given:
        if name not in owner.params:
            known = ", ".join(owner.params)
            listed = f"; its settings: {known}" if known else "; it has none"
            hint = suggest(name, owner.params) or listed
            raise error(f"{owner.name} has no setting {name!r}{hint}")
    return {name: _value(owner, name, param, given, error) for name, param in owner.params.items()}


def _value(
    owner: Declaring, name: str, param: Param, given: Mapping[str, Any], error: type[MergewiseError]
) -> Any:
    value = given.get(name, param.default)
    if value is REQUIRED:
        raise error(f"{owner.name}: the setting {name} is required: {param.help}")
    if name in given and (problem := param.problem(value)):
        raise error(f"{owner.name}: {name}: {problem} ({param.help})")
    return param.convert(value)
