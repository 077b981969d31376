"""The recipe: a YAML document that says which models, which method and which parameters."""

from __future__ import annotations

from mergewise.recipe._form import Form
from mergewise.recipe._load import check_recipe, load_recipe, load_with_warnings
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Position, Problems, shorten, suggest
from mergewise.recipe._recipe import Module, Recipe, Slice, Source, Stage
from mergewise.recipe._reference import ModelRef
from mergewise.recipe._resolve import Resolved, settings_for
from mergewise.recipe._settings import Condition, Setting
from mergewise.recipe._source import read_source
from mergewise.recipe._yaml import dump_documents, parse_documents

__all__ = [
    "Condition",
    "Form",
    "ModelRef",
    "Module",
    "Node",
    "Position",
    "Problems",
    "Recipe",
    "Resolved",
    "Setting",
    "Slice",
    "Source",
    "Stage",
    "check_recipe",
    "dump_documents",
    "load_recipe",
    "load_with_warnings",
    "parse_documents",
    "read_source",
    "settings_for",
    "shorten",
    "suggest",
]
