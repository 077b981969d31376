"""Merge methods: tensors in, one tensor out; one file a family."""

from __future__ import annotations

from mergewise.methods._base import Access, Inputs, Method, Need
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._registry import all_methods, get_method

__all__ = [
    "REQUIRED",
    "Access",
    "Inputs",
    "Method",
    "Need",
    "Param",
    "Settings",
    "all_methods",
    "get_method",
]
