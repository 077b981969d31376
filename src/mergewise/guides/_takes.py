"""Which methods take what a guide writes, and which undo it."""

from __future__ import annotations

from mergewise.errors import GuideError
from mergewise.methods import Method, Param, Settings, all_methods, get_method
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

SAME = "{} divides weights by their sum, so that weights all experts share have no effect"
INSTEAD = ", or let it write lambda (parameter=lambda), where the method has that"


MERGED = "lambda"
"""The factor on the merged task vector, one for all experts."""
WRITTEN = Param(
    str, "weight", "what is written: the weight of every expert, or lambda, the factor on the "
    "merged task vector, for methods that elect, divide or rescale",
    choices=("weight", MERGED),
)  # fmt: skip


def cannot_write(parameter: str, recipe: Recipe) -> str | None:
    """Why a recipe's method cannot be given a number for every expert, in words; None if it can."""
    taking = [name for name, method in all_methods().items() if _takes(method, parameter)]
    if recipe.output.method in taking:
        return None
    whose = "" if parameter == MERGED else " for every expert"
    return (
        f"it writes {parameter}{whose}, which {recipe.output.method} does not take; "
        f"methods that do: {', '.join(taking)}"
    )


def cannot_weigh(recipe: Recipe) -> str | None:
    """Why weights of task vectors cannot be written, in words; None if they can."""
    if problem := cannot_write("weight", recipe):
        return problem
    method = get_method(recipe.output.method)
    if method.base != "ignored":
        return None
    return (
        f"it writes weights of task vectors, and {method.name} knows no base; start from "
        "task_arithmetic"
    )


def refuse_normalized(name: str, plan: MergePlan, why: str, instead: str = "") -> None:
    """Refuse a recipe whose method divides by the sum of weights.

    Args:
        name: of the guide.
        why: what that would do, with {} for what divides.
        instead: another way out.

    Raises:
        GuideError: if it does so for some tensor.
    """
    method = get_method(plan.recipe.output.method)
    merged = (one for one in plan.output.tensors.values() if one.fate == "merge")
    by = next(filter(None, (method.normalized(Settings(one.values)) for one in merged)), "")
    if not by:
        return
    param = method.params.get(by)
    if param is None:
        way = "start from another method"
    else:
        way = f"write `{by}: false`" if param.kind is bool else f"choose another `{by}`"
    raise GuideError(f"{name}: {plan.recipe.path}: {why.format(f'`{by}`')}; {way}{instead}")


def sets(plan: MergePlan, parameter: str) -> bool:
    """Whether a parameter is on for some tensor that is merged."""
    merged = (one for one in plan.output.tensors.values() if one.fate == "merge")
    return any(one.values.get(parameter) for one in merged)


def _takes(method: Method, parameter: str) -> bool:
    param: Param | None = method.params.get(parameter)
    selection = getattr(method, "selection", None)
    if parameter == "density" and selection is not None and not selection.params:
        return False  # accepted for recipes from elsewhere, and without effect
    return param is not None and param.per_model == (parameter != MERGED)
