"""DPPA: prune task vectors less where their changes have outliers, and amplify the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergewise.errors import GuideError
from mergewise.guides._base import Ask, Expert, Guide, Guided, Needs
from mergewise.guides._by_layer import conditions
from mergewise.guides._densities import hold_mean, spread
from mergewise.guides._document import Values, explicit
from mergewise.guides._measures._cells import Cell, find_cells, map_of
from mergewise.guides._measures._outliers import outlier_shares
from mergewise.guides._takes import cannot_write, sets
from mergewise.methods import Param, Settings
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

Numbers = dict[str, dict[int, float]]
_METHOD = "breadcrumbs"
_KEPT = ("dtype", "out_dtype", "missing", "exclude")


class Dppa(Guide):
    """A density for every matrix of every layer, from the task vectors alone.

    With `amplify` a second stage of the recipe adds the largest of the changes once more, so that
    they count `amplify` times. The paper searches the factor on validation data; here it is a
    setting.
    """

    name = "dppa"
    summary = "densities by layer and component, from how many outliers the changes have"
    data = "none"
    source = "DPPA, Zhu et al. 2024, arXiv 2403.02799"
    verified = "idea"
    variant = (
        "the paper's rates and factors are not known to us: densities are OWL's (Yin et al. 2023, "
        "arXiv 2310.05175) on task vectors, by matrix, and there are two partitions, the largest "
        "changes and the rest"
    )
    writes = "density"
    params = {
        "density": Param(
            float, 0.2, "mean over the elements of guided tensors; the paper keeps 20 %", ge=0, le=1
        ),
        "range": Param(
            float, 0.08, "from the mean to the least and the greatest density, before the mean is "
            "held and densities are cut to [0, 1]; OWL's default", ge=0, le=1,
        ),
        "outlier": Param(
            float, 5.0, "a change is an outlier above this multiple of its tensor's mean", gt=0
        ),
        "scope": Param(
            str, "model", "outliers are compared over the model, or within each component",
            choices=("model", "component"),
        ),
        "amplify": Param(float, 1.0, "factor on the largest changes", ge=1),
        "partition": Param(
            float, 0.5, "share of what is kept that is amplified: the largest changes", gt=0, le=1
        ),
        "other_density": Param(
            float, 1.0, "of tensors that are not guided: embeddings, head, norms, biases", ge=0,
            le=1,
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if problem := cannot_write("density", recipe):
            return problem
        if settings.amplify > 1 and recipe.output.method != _METHOD:
            return (
                f"amplify: {recipe.output.method} is not a sum of the largest changes; "
                f"use {_METHOD}, with gamma 0 for nothing but them"
            )
        return None

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """Nothing.

        Raises:
            GuideError: if the recipe's method would undo an amplification.
        """
        for name in ("normalize", "rescale"):
            if settings.amplify > 1 and sets(plan, name):
                raise GuideError(
                    f"dppa: {plan.recipe.path}: `{name}` would undo `amplify`; set `{name}: false`"
                )
        return Needs()

    def run(self, ask: Ask) -> Guided:
        cells = find_cells(ask.stage)
        if not cells:
            raise GuideError("dppa: no matrix in a layer is merged; is everything excluded?")
        values, maps, notes = [], [], []
        shares = outlier_shares(ask, cells, ask.settings.outlier)
        for expert, found in zip(ask.experts, shares, strict=True):
            densities = _densities(found, ask.settings)
            values.append(_values(densities, ask.settings.other_density))
            maps.append(map_of(expert, "share of outliers", found))
            maps.append(map_of(expert, "density", densities))
            notes.append(_told(expert, densities))
        text, recipe, replaced = explicit(self, ask, values, lambda d: _stages(d, ask, values))
        return Guided(text, recipe, tuple(maps), (*replaced, *notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "D_ci: share of the elements of component c in layer i with |d| > outlier mean |d|, "
            "d = expert - base.\n"
            "Density: density - range + 2 range (D_ci - D_min) / (D_max - D_min), shifted so that "
            "the mean over elements is `density`.\n"
            "With amplify f, of the kept elements the `partition` share of the largest |d| count "
            "f times: a second stage adds them with weight (f - 1) w."
        )


def _densities(found: Mapping[Cell, float], settings: Settings) -> dict[Cell, float]:
    table = _table(found)
    elements = _table({cell: float(cell.elements) for cell in found})
    low, high = settings.density - settings.range, settings.density + settings.range
    held = hold_mean(spread(table, low, high, settings.scope), elements, settings.density)
    return {cell: held[cell.component][cell.layer] for cell in found}


def _table(values: Mapping[Cell, float]) -> Numbers:
    found: Numbers = {}
    for cell, value in values.items():
        found.setdefault(cell.component, {})[cell.layer] = value
    return found


def _values(densities: Mapping[Cell, float], other: float) -> Values:
    tensors = {tensor: value for cell, value in densities.items() for tensor in cell.tensors}
    return Values("density", tensors, other)


def _stages(document: dict[str, Any], ask: Ask, values: Sequence[Values]) -> list[dict[str, Any]]:
    """The given merge, and a second that adds the largest changes once more."""
    factor = ask.settings.amplify - 1
    if not factor:
        return [document]
    called = document.pop("name", None)
    name = _free_name(document)
    experts = [
        {"model": document["models"][expert.index]["model"], "parameters": given}
        for expert, given in zip(ask.experts, _largest(ask, values, factor), strict=True)
    ]
    whole = {"weight": 1.0, "density": 1.0, "gamma": 0.0}
    amplified = {"name": called} if called else {}
    amplified |= {
        "merge_method": _METHOD,
        "base_model": document["base_model"],
        "models": [{"model": name, "parameters": whole}, *experts],
    }
    kept = {key: document[key] for key in _KEPT if key in document}
    return [{"name": name, **document}, amplified | kept]


def _largest(ask: Ask, values: Sequence[Values], factor: float) -> list[dict[str, Any]]:
    """For each expert, the parameters that take the largest of its changes, `factor` times."""
    names, tensors, found = list(ask.stage.tensors), ask.stage.tensors, []
    for place, own in enumerate(values):
        density = {name: value * ask.settings.partition for name, value in own.tensors.items()}
        given = {name: tensors[name].values for name in own.tensors}
        weight = {n: v["weight"][place] * v["lambda"] * factor for n, v in given.items()}
        gamma = {n: v["gamma"][place] for n, v in given.items()}
        found.append(
            {
                "weight": _shortest(weight, names),
                "density": conditions(density, 0.0, names),
                "gamma": _shortest(gamma, names),
            }
        )
    return found


def _shortest(values: Mapping[str, float], names: Sequence[str]) -> Any:
    """One number, if it is the same for all; elsewhere nothing is kept anyway."""
    different = set(values.values())
    return different.pop() if len(different) == 1 else conditions(values, 0.0, names)


def _free_name(document: dict[str, Any]) -> str:
    """A stage's name hides a model that is called so."""
    taken = {document["base_model"], *(one["model"] for one in document["models"])}
    names = ("pruned", *(f"pruned_{i}" for i in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _told(expert: Expert, densities: Mapping[Cell, float]) -> str:
    numbers = list(densities.values())
    whole = sum(cell.elements for cell in densities)
    mean = sum(value * cell.elements for cell, value in densities.items()) / whole
    return (
        f"{expert.label}: density {min(numbers):.4g} to {max(numbers):.4g}, mean {mean:.6f} over "
        f"the elements of {len(densities)} components of layers"
    )
