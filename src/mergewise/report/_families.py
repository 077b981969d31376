"""The families of merge methods, by which pages and lists are ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergewise.methods import Method

FAMILIES = {
    "averages": ("Averages and interpolation", "Of the weights themselves."),
    "task vectors": (
        "Task vectors, element by element",
        "What experts have more than their base, added up after elements are dropped, weighed or "
        "outvoted.",
    ),
    "subspaces": (
        "Task vectors as matrices",
        "Singular vectors and subspaces of what experts have more than their base.",
    ),
    "arithmetic": (
        "Other arithmetic",
        "Adding, subtracting, turning and cutting, mostly of two or three models.",
    ),
    "evidence": (
        "With evidence",
        "Statistics of the models on data, or of their training, are read beside the weights "
        "(`mergewise collect`).",
    ),
}
"""Title, and what they have in common."""


def family_of(method: Method) -> str:
    """The family a method says it belongs to, else what its needs suggest."""
    if method.family:
        return method.family
    if method.needs_at_defaults():
        return "evidence"
    return "arithmetic" if method.base == "required" else "averages"
