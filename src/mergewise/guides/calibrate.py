"""Calibrate: collect what a recipe's method reads beside weights, and name it in the recipe."""

from __future__ import annotations

from typing import Any

from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import Evidence
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._evidence import (
    OPTIONS,
    given_options,
    name_base,
    name_files,
    of_base,
    options_problem,
)
from mergewise.methods import Need, Settings, all_methods, get_method
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

_ELSEWHERE = {"mask": "guides train it: localize_and_stitch, grafting"}
"""Statistics that are not collected on data."""


class Calibrate(Guide):
    """For any method that reads evidence: one step from models and data to a recipe that runs."""

    name = "calibrate"
    summary = "the evidence that the recipe's method reads, of every model on its data"
    data = "unlabelled"
    source = "that of the recipe's method"
    based = False
    calibrates = True
    params = {"collect": OPTIONS}

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        if problem := options_problem(settings.collect):
            return problem
        method = get_method(recipe.output.method)
        if _may_read(method):
            return None
        reading = [name for name, one in all_methods().items() if _may_read(one)]
        return f"{method.name} reads no evidence; methods that do: {', '.join(reading)}"

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """What the method reads with the recipe's parameters, over all tensors.

        Raises:
            GuideError: if it reads nothing, or something that is not collected on data.
            EvidenceError: for options that the statistics do not have.
        """
        needs = read_by(plan)
        if not needs:
            raise GuideError(
                f"calibrate: {plan.recipe.path}: {plan.recipe.output.method} reads no evidence "
                "with these parameters; it can be merged as it is"
            )
        for need in needs:
            if need.statistic in _ELSEWHERE:
                raise GuideError(
                    f"calibrate: {need.statistic} is not collected on data; "
                    f"{_ELSEWHERE[need.statistic]}"
                )
        names = dict.fromkeys(need.statistic for need in needs)
        if problem := options_problem(settings.collect, names):
            raise EvidenceError(f"calibrate: {problem}")
        own, base = (
            tuple(dict.fromkeys(need.statistic for need in needs if need.of == whose))
            for whose in ("experts", "base")
        )
        return Needs(own, base, options=given_options(settings.collect))

    def run(self, ask: Ask) -> Guided:
        notes: list[str] = []

        def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
            notes.extend(name_files(document, ask, _own(ask)))
            if based := _of_base(ask):
                name_base(document, ask, based)
            return [document]

        text, recipe, replaced = explicit(self, ask, edit=edit)
        return Guided(text, recipe, notes=(*notes, *replaced), warnings=ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "What the method reads follows from its parameters, such as `score: fisher` of ties. "
            "It is collected of every expert on its own data (of the base on everybody's), and "
            "the files are named under `evidence`. No parameter is changed."
        )


def _may_read(method: Any) -> bool:
    """Whether a method reads evidence at its defaults, or with any one choice made otherwise."""
    defaults = {name: param.default for name, param in method.params.items()}
    changes = [{}, *({name: c} for name, param in method.params.items() for c in param.choices)]
    return any(method.needs(Settings({**defaults, **change})) for change in changes)


def read_by(plan: MergePlan) -> list[Need]:
    """What a recipe's method reads over all tensors that it merges."""
    method = get_method(plan.recipe.output.method)
    merged = [one for one in plan.output.tensors.values() if one.fate == "merge"]
    found = [need for one in merged for need in method.needs(Settings(one.values))]
    return list(dict.fromkeys(found))


def _own(ask: Ask) -> dict[int, list[Evidence]]:
    return {one.index: list(one.evidence.values()) for one in ask.experts if one.evidence}


def _of_base(ask: Ask) -> list[Evidence]:
    names = dict.fromkeys(name for expert in ask.experts for name in expert.base)
    return [of_base(ask, name) for name in names]
