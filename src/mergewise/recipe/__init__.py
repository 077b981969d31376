"""The recipe: a YAML document that says which models, which method and which parameters."""

from __future__ import annotations

from mergewise.recipe._load import check_recipe, load_recipe, load_with_warnings
from mergewise.recipe._problems import Position
from mergewise.recipe._recipe import Module, Recipe, Slice, Source, Stage
from mergewise.recipe._reference import ModelRef
from mergewise.recipe._resolve import Resolved, settings_for
from mergewise.recipe._settings import Condition, Setting

__all__ = [
    "Condition",
    "ModelRef",
    "Module",
    "Position",
    "Recipe",
    "Resolved",
    "Setting",
    "Slice",
    "Source",
    "Stage",
    "check_recipe",
    "load_recipe",
    "load_with_warnings",
    "settings_for",
]
