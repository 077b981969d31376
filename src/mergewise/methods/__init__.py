"""Merge methods: tensors in, one tensor out; one file a family."""

from __future__ import annotations

from mergewise.methods._base import Access, Inputs, Method, Need
from mergewise.methods._matrix import MatrixMethod, PlacedMethod, placed
from mergewise.methods._names import spelled
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._registry import all_methods, get_method
from mergewise.methods._score import SCORES, element_score, score_needs
from mergewise.methods._select import kept_count

__all__ = [
    "REQUIRED",
    "SCORES",
    "Access",
    "Inputs",
    "MatrixMethod",
    "Method",
    "Need",
    "Param",
    "PlacedMethod",
    "Settings",
    "all_methods",
    "element_score",
    "get_method",
    "kept_count",
    "placed",
    "score_needs",
    "spelled",
]
