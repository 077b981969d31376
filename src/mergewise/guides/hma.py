"""Heterogeneous model averaging: groups of layers are interpolated each by its own ratio."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mergewise.checkpoint import is_pre_layer, layer_index, layer_prefix
from mergewise.errors import GuideError
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._by_layer import by_layer
from mergewise.guides._document import Edit, explicit
from mergewise.guides._pair import Pair, pair_of, pair_problem
from mergewise.guides._scoring import Scored, Scorer
from mergewise.guides._weighting import commented, weights
from mergewise.methods import Param, Settings
from mergewise.plan import StagePlan
from mergewise.recipe import Recipe

_TOO_MANY = 1 << 18


class Hma(Guide):
    """Ratios of groups of layers, their mean held to a budget, searched by scores."""

    name = "hma"
    summary = "a ratio between two models for each group of layers, at a given mean ratio"
    data = "labelled"
    source = "Mitigating the Alignment Tax of RLHF, Lin et al. 2023, arXiv 2309.06256"
    variant = (
        "groups and what belongs to them as in the official code (embeddings with the first "
        "group, head and last norm at the mean ratio); the search over a grid is ours"
    )
    verified = "idea"
    writes = "weight"
    based = False
    params = {
        "budget": Param(float, 0.5, "mean of the groups' ratios; 1 is the new model", gt=0, lt=1),
        "groups": Param(int, 3, "contiguous groups of layers", ge=2, le=16),
        "step": Param(float, 0.25, "between the ratios that are tried", ge=0.01, le=0.5),
        "most": Param(int, 64, "more merges than this are refused", ge=1),
        "old": Param(str, None, "the old one of two models without a base; default: the first"),
    }

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        many = len(_offsets(settings)) ** settings.groups > _TOO_MANY
        count = None if many else len(_grid(settings))
        if count is None or count > settings.most:
            told = "too many" if count is None else f"{count:,}"
            return (
                f"{settings.groups} groups in steps of {settings.step:g} make {told} merges, and "
                f"most is {settings.most}; take fewer groups or a longer step"
            )
        return pair_problem(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(tasks=True)

    def run(self, ask: Ask) -> Guided:
        pair, grid = pair_of(self.name, ask, ask.settings.old), _grid(ask.settings)
        groups = _groups(ask.stage, ask.settings.groups)
        scorer = Scorer(self, ask, len(grid) + 2)
        told = [f"alone: {one}" for one in scorer.models(pair.paths()).values()]
        flat = weights(pair.each(ask.settings.budget, 1 - ask.settings.budget))
        best: tuple[Scored, Edit] | None = None
        for ratios in grid:
            edit = _edit(ask, pair, groups, ratios)
            found = scorer.candidate(_named(ratios), flat, edit)
            told.append(str(found))
            if best is None or found.mean > best[0].mean:
                best = found, edit
        assert best is not None
        text, recipe, notes = explicit(self, ask, flat, best[1])
        told += [f"chosen {best[0]}", scorer.summary()]
        warnings = (*ask.warnings, *scorer.warnings())
        return Guided(commented(text, told), recipe, (), (*told, *notes), warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "theta = old + r_k (new - old) in layer group k; layer i of L is in group "
            "floor(i groups / L).\n"
            "mean_k r_k = budget; r_k = budget + j_k step in [0, 1], the j_k whole numbers with "
            "sum 0; all are merged and scored, the evenest first, and the first of the best is "
            "taken.\n"
            "Tensors before the layers have r_1, those after them the budget."
        )


def _offsets(settings: Settings) -> list[int]:
    """Steps that a ratio may be away from the budget."""
    reach = range(-round(1 / settings.step), round(1 / settings.step) + 1)
    return [j for j in reach if -1e-9 <= settings.budget + j * settings.step <= 1 + 1e-9]


def _grid(settings: Settings) -> list[tuple[float, ...]]:
    """Ratios of all groups, the evenest first."""
    every = itertools.product(_offsets(settings), repeat=settings.groups)
    found = sorted((c for c in every if sum(c) == 0), key=lambda c: (sum(map(abs, c)), c))
    return [tuple(round(settings.budget + j * settings.step, 9) for j in each) for each in found]


def _groups(stage: StagePlan, count: int) -> dict[str, int]:
    """The group of every tensor that has one."""
    layers: dict[str, set[int]] = {}
    for name in stage.tensors:
        if (index := layer_index(name)) is not None:
            layers.setdefault(str(layer_prefix(name)), set()).add(index)
    depth = {prefix: max(found) + 1 for prefix, found in layers.items()}
    if max(depth.values(), default=0) < count:
        raise GuideError(
            f"hma: {count} groups of {max(depth.values(), default=0)} layers cannot be made; "
            "set fewer groups"
        )
    found = {}
    for name in stage.tensors:
        index = layer_index(name)
        if index is not None:
            found[name] = index * count // depth[str(layer_prefix(name))]
        elif is_pre_layer(name):
            found[name] = 0
    return found


def _edit(ask: Ask, pair: Pair, groups: Mapping[str, int], ratios: Sequence[float]) -> Edit:
    new = {name: ratios[group] for name, group in groups.items()}
    old = {name: 1 - ratio for name, ratio in new.items()}
    budget = ask.settings.budget
    return by_layer(ask, pair.each(new, old), pair.each(budget, 1 - budget))


def _named(ratios: Sequence[float]) -> str:
    return "ratios " + ", ".join(f"{ratio:.6g}" for ratio in ratios)
