"""Densities out of a guide's recipe, and into the recipe of a cell."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergewise.engine import merge
from mergewise.errors import InterruptedMergeError
from mergewise.methods import get_method
from mergewise.plan import build_plan

if TYPE_CHECKING:
    from benchmarks.lab._family import State
    from mergewise.recipe import Recipe

Densities = list[dict[str, float]]
"""For each expert, the density of every guided tensor."""
_SPACE = 0.9
"""Share of the room below and above a density that DELLA's epsilon may take."""


def densities_of(recipe: Recipe) -> Densities:
    """What an explicit recipe says of each expert's tensors, leaving out those of no guide."""
    tensors = build_plan(recipe).output.tensors
    return [
        {name: float(t.values["density"][i]) for name, t in tensors.items() if name in named}
        for i, named in enumerate(_named(recipe))
    ]


def _named(recipe: Recipe) -> list[set[str]]:
    """The tensors for which a recipe names a density, by expert."""
    [document] = list(yaml.safe_load_all(recipe.text))
    return [
        {rule["filter"] for rule in model["parameters"]["density"] if "filter" in rule}
        for model in document["models"]
    ]


def written(method: str, densities: Mapping[str, float]) -> dict[str, Any]:
    """Density as a recipe says it, everything that is not guided at 1.

    DELLA's epsilon has to leave every probability between 0 and 1: it is narrower where a density
    is near either, in both arms alike.
    """
    names = sorted(densities, key=lambda name: -len(name))  # the first filter that fits counts
    found: dict[str, Any] = {
        "density": [*({"filter": n, "value": densities[n]} for n in names), {"value": 1.0}]
    }
    if method == "della":
        usual = get_method(method).params["epsilon"].default
        room = {n: _SPACE * min(d, 1 - d) for n, d in densities.items()}
        rules = [{"filter": n, "value": min(usual, room[n])} for n in names]
        found["epsilon"] = [*rules, {"value": usual}]
    return found


def merged(document: dict[str, Any]) -> State:
    """The weights that a recipe makes, through files as for any user.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
        MergewiseError: if it cannot be run.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="lab-guides-") as folder:
        try:
            made = merge(document, Path(folder) / "out", device="cpu", workers=1)
        except InterruptedMergeError:
            raise KeyboardInterrupt from None
        return load_file(made.out / made.files[0])
