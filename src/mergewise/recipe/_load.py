"""Load a recipe, or list what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergewise.errors import Diagnostic, RecipeError
from mergewise.recipe._checks import check_stage
from mergewise.recipe._nodes import Node
from mergewise.recipe._overrides import apply_overrides, render
from mergewise.recipe._problems import Position, Problems
from mergewise.recipe._recipe import Recipe
from mergewise.recipe._source import read_source
from mergewise.recipe._stage import read_stage
from mergewise.recipe._stages import check_names
from mergewise.recipe._yaml import parse_documents


def load_recipe(
    source: str | Path | Mapping[str, Any],
    *,
    lenient: bool = False,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Read and check a recipe. No checkpoint is opened.

    Args:
        source: the path of a YAML file, YAML text (a `str` with a line break), or a mapping.
        lenient: unknown keys and absent required parameters are warnings. A recipe that lacks a
            parameter can be looked at, but not run.
        overrides: changes such as ``parameters.t=0.3``, made before anything is checked.

    Returns:
        The recipe in its normal form; warnings are to be had from `load_with_warnings`.

    Raises:
        RecipeError: with every problem found, in document order.
    """
    return load_with_warnings(source, lenient=lenient, overrides=overrides)[0]


def load_with_warnings(
    source: str | Path | Mapping[str, Any],
    *,
    lenient: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[Recipe, list[Diagnostic]]:
    """As `load_recipe`, with its warnings; a source that can be read only once is read once."""
    problems = Problems(lenient)
    recipe = _try(source, overrides, problems)
    problems.raise_if_failed()
    assert recipe is not None
    return recipe, problems.in_order()


def check_recipe(
    source: str | Path | Mapping[str, Any],
    *,
    lenient: bool = False,
    overrides: Sequence[str] = (),
) -> list[Diagnostic]:
    """All errors and warnings of a recipe, in document order; see `load_recipe`."""
    problems = Problems(lenient)
    _try(source, overrides, problems)
    return problems.in_order()


def _try(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], problems: Problems
) -> Recipe | None:
    try:
        return _read(source, overrides, problems)
    except RecipeError as error:
        problems.found += error.diagnostics
        return None


def _read(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], problems: Problems
) -> Recipe | None:
    path, text = read_source(source)
    documents = parse_documents(text, path, problems)
    if not documents:
        problems.error(Position(path), "the document is empty; a recipe needs `merge_method`")
        return None
    if overrides:
        apply_overrides(documents, overrides, problems)
        text = render(documents)
    stages = [read_stage(document, problems) for document in documents]
    check_names(documents, stages, problems)
    for stage in stages[:-1]:
        if stage is not None and stage.makes is not None:
            problems.error(
                stage.positions["form"], "form: only the last stage, which is the result, has one"
            )
    for stage in stages:
        if stage is not None:
            check_stage(stage, problems)
    done = tuple(stage for stage in stages if stage is not None)
    return Recipe(path, text, done, _digest(documents)) if len(done) == len(stages) else None


def _digest(documents: Sequence[Node]) -> str:
    plain = [document.plain() for document in documents]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
