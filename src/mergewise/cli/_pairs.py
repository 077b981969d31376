"""Options of the form ``KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Callback = Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]


def texts(example: str, form: str = "KEY=VALUE") -> Callback:
    """A callback that gives values by key, as written; the last of equal keys counts."""

    def callback(
        ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, Any]:
        found = {}
        for value in values:
            name, equals, text = value.partition("=")
            if not (name and equals):
                raise click.BadParameter(f"{value!r}: {form} expected, such as {example}")
            found[name] = text
        return found

    return callback


def scalars(example: str, form: str = "KEY=VALUE") -> Callback:
    """As `texts`, the values as in YAML."""
    read = texts(example, form)

    def callback(
        ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, Any]:
        return {name: scalar(text) for name, text in read(ctx, param, values).items()}

    return callback


def scalar(text: str) -> Any:
    """A value as in YAML; what is none is a text."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
