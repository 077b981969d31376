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
    "wanda": {"importance": "wanda"},
    "activation": {"importance": "activation"},
    "delta": {"importance": "delta"},
    "curvature": {"importance": "curvature"},
    "gain": {"importance": "gain"},
}
DEFAULT = "curvature"
"""What the lab favours: docs/results/guides.md."""
SCORES = {"curvature": "fisher", "gain": "gain"}
"""Importances of elements: the score whose one threshold over the model gives the densities."""
_UNUSED = ("scope", "round", "propagation", "sparsity", "parameter")
"""By those."""
_SPREAD = 0.3, 0.8
_BOUNDS = 0.0, 1.0
"""What is kept of the least and the most, by default; and bounds of a threshold's shares."""


def resolved(settings: Settings, params: Mapping[str, Param]) -> Settings:
    """Settings with a variant's in place of defaults; None for those that have no say."""
    values = {name: getattr(settings, name) for name in params}
    values |= _named(settings)
    values["importance"] = values["importance"] or DEFAULT
    if values["propagation"] == "dense":
        values["sparsity"] = None
    if values["importance"] in SCORES:
        values |= dict.fromkeys(_UNUSED)
        values["parameter"] = "density"
    values["density_min"], values["density_max"] = _range(Settings(values))
    return Settings(values)


def _range(settings: Settings) -> tuple[float, float]:
    least, most = _BOUNDS if settings.importance in SCORES else _SPREAD
    low, high = settings.density_min, settings.density_max
    return (least if low is None else low, most if high is None else high)


def contradiction(given: Mapping[str, Any], params: Mapping[str, Param]) -> str | None:
    """What of the settings that were given does not go together, in words."""
    return next(_contradictions(given, params), None)


def _contradictions(given: Mapping[str, Any], params: Mapping[str, Param]) -> Iterator[str]:
    settings = Settings({name: given.get(name, param.default) for name, param in params.items()})
    named = _named(settings)
    for name, value in named.items():
        if given.get(name, value) != value:
            yield f"{_variant(settings)} sets {name} {value}, not {given[name]}; leave one out"
    importance = named.get("importance", settings.importance) or DEFAULT
    if importance in SCORES:
        for name in _UNUSED:
            if name in given and (name, given[name]) != ("parameter", "density"):
                yield (
                    f"{name} has no say with importance {importance}, whose densities follow from "
                    "one threshold over the model; leave it out, or say another importance"
                )
    low, high = _range(Settings({**settings.__dict__, **named, "importance": importance}))
    if low > high:
        yield f"density_min {low:g} is greater than density_max {high:g}; exchange them"
    mean = settings.mean_density
    if importance in SCORES and mean is not None and not low <= mean <= high:
        yield f"mean_density {mean:g} lies outside density_min and density_max; change one"


def lacks_density(given: Settings, chosen: Settings, recipe: Recipe) -> str | None:
    """Why one threshold cannot be looked for, in words."""
    bounds = given.density_min is not None and given.density_max is not None
    found = chosen.importance not in SCORES or chosen.mean_density is not None
    if found or bounds or has_density(recipe):
        return None
    return (
        f"importance {chosen.importance} needs mean_density, a `density` in the recipe, or both "
        "density_min and density_max"
    )


def _named(settings: Settings) -> dict[str, Any]:
    """What preset and variant set."""
    preset = dict(VARIANTS["reference"]) if settings.preset else {}
    return preset | dict(VARIANTS[settings.variant] if settings.variant else {})


def _variant(settings: Settings) -> str:
    return f"variant {settings.variant}" if settings.variant else f"preset {settings.preset}"


def has_density(recipe: Recipe) -> bool:
    """Whether a recipe says how much is kept."""
    [slice_] = recipe.output.modules[0].slices
    levels = [recipe.output.parameters, *(s.parameters for s in slice_.sources)]
    return any("density" in level for level in levels)
