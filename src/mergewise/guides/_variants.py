"""Variants of LEWIS by name, and settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

REFERENCE: Mapping[str, Any] = {
    "importance": "wanda",
    "propagation": "pruned",
    "sparsity": 0.5,
    "scope": "model",
    "density_min": 0.3,
    "density_max": 0.8,
    "round": 5,
    "other_density": 1.0,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "reference": REFERENCE,
    "activation": {"importance": "activation"},
    "delta": {"importance": "delta"},
    "curvature": {"importance": "curvature"},
    "gain": {"importance": "gain"},
}
SCORES = {"curvature": "fisher", "gain": "gain"}
"""Importances of elements: the score whose one threshold over the model gives the densities."""
_UNUSED = ("density_min", "density_max", "scope", "round", "propagation", "sparsity", "parameter")
"""By those."""


def resolved(settings: Settings, params: Mapping[str, Param]) -> Settings:
    """Settings with a variant's in place of defaults; None for those that have no say."""
    values = {name: getattr(settings, name) for name in params}
    values |= _named(settings)
    if values["propagation"] == "dense":
        values["sparsity"] = None
    if values["importance"] in SCORES:
        values |= dict.fromkeys(_UNUSED)
        values["parameter"] = "density"
    return Settings(values)


def contradiction(settings: Settings, params: Mapping[str, Param], recipe: Recipe) -> str | None:
    """What does not go together, in words."""
    return next(_contradictions(settings, params, recipe), None)


def _contradictions(
    settings: Settings, params: Mapping[str, Param], recipe: Recipe
) -> Iterator[str]:
    changed = {n: getattr(settings, n) for n in params if getattr(settings, n) != params[n].default}
    named = _named(settings)
    for name, value in named.items():
        if changed.get(name, value) != value:
            yield f"{_variant(settings)} sets {name} {value}, not {changed[name]}; leave one out"
    importance = named.get("importance", settings.importance)
    if importance in SCORES:
        for name in _UNUSED:
            if name in changed:
                yield (
                    f"{name} has no say with importance {importance}, whose densities follow from "
                    "one threshold over the model; leave it out"
                )
        if settings.mean_density is None and not _has_density(recipe):
            yield f"importance {importance} needs mean_density, or a `density` in the recipe"
    elif settings.density_min > settings.density_max:
        yield (
            f"density_min {settings.density_min:g} is greater than density_max "
            f"{settings.density_max:g}; exchange them"
        )


def _named(settings: Settings) -> dict[str, Any]:
    """What preset and variant set."""
    preset = dict(VARIANTS["reference"]) if settings.preset else {}
    return preset | dict(VARIANTS[settings.variant] if settings.variant else {})


def _variant(settings: Settings) -> str:
    return f"variant {settings.variant}" if settings.variant else f"preset {settings.preset}"


def _has_density(recipe: Recipe) -> bool:
    [slice_] = recipe.output.modules[0].slices
    levels = [recipe.output.parameters, *(s.parameters for s in slice_.sources)]
    return any("density" in level for level in levels)
