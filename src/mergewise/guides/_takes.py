"""Which methods take a parameter that a guide writes."""

from __future__ import annotations

from mergewise.methods import Method, Param, all_methods
from mergewise.recipe import Recipe


def cannot_write(parameter: str, recipe: Recipe) -> str | None:
    """Why a recipe's method cannot be given a number for every expert, in words; None if it can."""
    taking = [name for name, method in all_methods().items() if _takes(method, parameter)]
    if recipe.output.method in taking:
        return None
    return (
        f"it writes {parameter} for every expert, which {recipe.output.method} does not take; "
        f"methods that do: {', '.join(taking)}"
    )


def _takes(method: Method, parameter: str) -> bool:
    param: Param | None = method.params.get(parameter)
    selection = getattr(method, "selection", None)
    if parameter == "density" and selection is not None and not selection.params:
        return False  # accepted for recipes from elsewhere, and without effect
    return param is not None and param.per_model
