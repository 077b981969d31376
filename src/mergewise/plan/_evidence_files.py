"""The evidence files that a recipe names, opened; of an absent one it is told how to collect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mergewise.errors import MergewiseError
from mergewise.evidence import Evidence
from mergewise.methods import Need, Settings, get_method
from mergewise.plan._evidence import evidence_path, how_to_collect, open_evidence
from mergewise.plan._views import describe
from mergewise.recipe import Module, Position, Recipe, Slice, Source, Stage, settings_for


def open_files(recipe: Recipe, problem: Callable[[Position, str], None]) -> dict[str, Evidence]:
    """Every evidence file of a recipe by its name there; what cannot be opened is told."""
    found: dict[str, Evidence] = {}
    for stage, module, slice_ in _slices(recipe):
        for source in slice_.sources:
            for text in source.evidence:
                try:
                    found.setdefault(text, open_evidence(text, recipe))
                except MergewiseError as error:
                    how = ""
                    if evidence_path(text, recipe) is None:
                        how = _how(_statistics(stage, module, slice_, source), source, text)
                    problem(source.position, f"evidence: {describe(error)}{how}")
    return found


def _slices(recipe: Recipe) -> Iterator[tuple[Stage, Module, Slice]]:
    for stage in recipe.stages:
        for module in stage.modules:
            for slice_ in module.slices:
                yield stage, module, slice_


def _how(statistics: list[str], source: Source, text: str) -> str:
    if not statistics:
        return ""
    return f", or {how_to_collect(statistics, str(source.model), text).rstrip(',')}"


def _statistics(stage: Stage, module: Module, slice_: Slice, source: Source) -> list[str]:
    """What the method reads of a model."""
    method = get_method(stage.method)
    try:
        names = [""] * len(slice_.sources)
        values, _ = settings_for(stage, method, module, slice_, 0.0, "", names)
        needs: tuple[Need, ...] = method.needs(Settings(values))
    except MergewiseError:  # a value is missing or wrong; that is told elsewhere
        needs = method.needs_at_defaults()
    of = "base" if method.base != "ignored" and source is slice_.base else "experts"
    return list(dict.fromkeys(need.statistic for need in needs if need.of == of))
