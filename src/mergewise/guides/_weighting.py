"""Guides that find one number for each expert: its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergewise.guides._base import Ask
from mergewise.guides._document import Values
from mergewise.methods import Method, all_methods, get_method
from mergewise.recipe import Recipe


def takes_weight(method: Method) -> bool:
    """Whether a method has a weight for every expert, and takes any number of experts."""
    param = method.params.get("weight")
    return param is not None and param.per_model and method.experts == (1, None)


def weight_problem(recipe: Recipe) -> str | None:
    """Why weights of this recipe's experts cannot be chosen, in words; None if they can."""
    stage = recipe.output
    method = get_method(stage.method)
    if not takes_weight(method):
        names = ", ".join(name for name, each in all_methods().items() if takes_weight(each))
        return (
            f"it writes a weight for each of any number of experts, and {method.name} does not "
            f"take that; methods that do: {names}"
        )
    if method.base == "ignored" and stage.base_model is not None:
        return (
            f"{method.name} has no base, and takes part of {stage.base_model} as of any expert; "
            "remove `base_model`, and list it under `models` if it is to take part"
        )
    return None


def weights(numbers: Sequence[float]) -> list[Values]:
    """A weight for each expert, the same for all of its tensors."""
    return [Values("weight", {}, number) for number in numbers]


def equal_weights(ask: Ask, chosen: Sequence[int]) -> list[Values]:
    """Of experts by their place among the experts: 1 / k for those chosen, 0 for others."""
    share = 1 / len(chosen)
    return weights([share if i in chosen else 0.0 for i in range(len(ask.experts))])


def without_others(ask: Ask, chosen: Sequence[int]) -> Any:
    """An edit of the document that leaves out the experts that are not chosen."""
    dropped = {expert.index for i, expert in enumerate(ask.experts) if i not in chosen}

    def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
        models = enumerate(document["models"])
        return [{**document, "models": [m for i, m in models if i not in dropped]}]

    return edit


def commented(text: str, lines: Sequence[str]) -> str:
    """An explicit recipe with more comments at the end of those it begins with."""
    rows = text.splitlines(keepends=True)
    end = next(i for i, row in enumerate(rows) if not row.startswith("#"))
    own = [f"# {' '.join(line.split())}\n" for line in lines]
    return "".join([*rows[:end], *own, *rows[end:]])
