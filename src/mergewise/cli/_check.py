"""`mergewise check`: the document alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergewise.cli._errors import BAD, OK
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    recipe_options,
)
from mergewise.cli._output import Output, count

if TYPE_CHECKING:
    from mergewise.errors import Diagnostic


@our_command(name="check")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...", type=click.Path())
@recipe_options
@access_options
@json_option
def command(
    out: Output, recipes: tuple[str, ...], overrides: tuple[str, ...], lenient: bool, as_json: bool
) -> int:
    """List every mistake in recipes, without opening a model.

    Prints file:line:column: message. The exit code is 2 if there is an error, else 0.
    """
    from mergewise.recipe import check_recipe

    found = {
        path: check_recipe(Path(path), lenient=lenient, overrides=overrides) for path in recipes
    }
    if as_json:
        out.json([_as_dict(path, diagnostics) for path, diagnostics in found.items()])
    else:
        _print(out, found)
    return OK if all(map(_passes, found.values())) else BAD


def _passes(diagnostics: list[Diagnostic]) -> bool:
    return all(d.severity != "error" for d in diagnostics)


def _as_dict(path: str, diagnostics: list[Diagnostic]) -> dict[str, object]:
    return {
        "recipe": path,
        "ok": _passes(diagnostics),
        "diagnostics": [asdict(d) for d in diagnostics],
    }


def _print(out: Output, found: dict[str, list[Diagnostic]]) -> None:
    every = [d for diagnostics in found.values() for d in diagnostics]
    for diagnostic in every:
        out.diagnostic(diagnostic, err=False)
    errors = sum(d.severity == "error" for d in every)
    warnings = len(every) - errors
    subject = count(len(found), "recipe") + ": " if len(found) > 1 else ""
    if every:
        out.note(f"{subject}{count(errors, 'error')}, {count(warnings, 'warning')}")
    else:
        out.note(f"{subject}no mistakes found; `mergewise plan` looks at the models too")
