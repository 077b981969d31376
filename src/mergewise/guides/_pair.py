"""Recipes of two models, and the way from the one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mergewise.checkpoint import Checkpoint
from mergewise.guides._base import Ask
from mergewise.guides._names import place_of
from mergewise.guides._takes import refuse_normalized
from mergewise.guides._weighting import weight_problem
from mergewise.methods import get_method
from mergewise.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """old + ratio (new - old).

    Attributes:
        old, new: what the recipe calls them.
        place: of the new model among the experts.
        both: whether the old model is an expert too, and no base.
    """

    old: str
    new: str
    old_files: Checkpoint
    new_files: Checkpoint
    place: int
    both: bool

    def each(self, new: T, old: T) -> list[T]:
        """What is the new model's and the old one's, in the order of the experts."""
        if not self.both:
            return [new]
        return [old, new] if self.place == 1 else [new, old]

    def paths(self) -> dict[str, Path]:
        """Both models by label, the old one first."""
        return {self.old: self.old_files.path, self.new: self.new_files.path}


def shares_alpha(recipe: Recipe) -> bool:
    """Whether the method has the old model's share as a parameter of its own, as `bcwi` has."""
    method = get_method(recipe.output.method)
    return method.experts == (1, 1) and {"alpha"} == {"alpha", "weight"} & method.params.keys()


def pair_problem(recipe: Recipe) -> str | None:
    """Why a recipe is not one of two models with weights, in words; None if it is."""
    if problem := weight_problem(recipe):
        return problem
    stage = recipe.output
    [slice_] = stage.modules[0].slices
    method = get_method(stage.method)
    experts = [s for i in slice_.experts(method.base) if (s := slice_.sources[i])]
    wanted = 1 if stage.base_model is not None else 2
    if len(experts) == wanted:
        return None
    given = f"a base and {len(experts)}" if stage.base_model is not None else str(len(experts))
    return (
        "it goes from one model to another: expected two models without a base, as for `linear`, "
        f"or a base and one, as for `task_arithmetic`; got {given}"
    )


def pair_of(name: str, ask: Ask, old: str | None) -> Pair:
    """The two models.

    Args:
        name: of the guide.
        old: which of two models without a base is the old one, as the recipe calls it or by the
            last part of its path; None for the first.

    Raises:
        GuideError: if there is no such model, or the method's `normalize` makes up for weights.
    """
    experts = ask.experts
    if ask.base is not None:
        if not shares_alpha(ask.plan.recipe):
            why = "{} divides by the sum of weights, so that of one expert has no effect"
            refuse_normalized(name, ask.plan, why)
        base = str(ask.plan.recipe.output.base_model)
        _place(old, [base])
        return Pair(base, experts[0].label, ask.base, experts[0].checkpoint, 0, False)
    first = _place(old, [expert.label for expert in experts])
    one, other = experts[first], experts[1 - first]
    return Pair(one.label, other.label, one.checkpoint, other.checkpoint, 1 - first, True)


def _place(old: str | None, labels: Sequence[str]) -> int:
    return 0 if old is None else place_of(old, labels, "old")
