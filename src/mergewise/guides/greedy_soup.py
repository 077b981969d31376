"""Greedy soups: experts are averaged one after the other, as long as a score rises."""

from __future__ import annotations

import math

from mergewise.errors import GuideError
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._scoring import Scored, Scorer
from mergewise.guides._weighting import (
    commented,
    equal_weights,
    weight_problem,
    without_others,
)
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe


class GreedySoup(Guide):
    """Which experts are merged, all with one weight."""

    name = "greedy_soup"
    summary = "which experts take part: added from the best on, while the score rises"
    data = "labelled"
    source = "Model soups, Wortsman et al. 2022, arXiv 2203.05482"
    variant = (
        "the official code; scores are means over tasks, methods any with weights, and restricted "
        "pools are ours"
    )
    verified = "code"
    writes = "weight"
    based = False
    params = {
        "accept": Param(
            str, "strict", "an expert stays if the score rises (official code), or does not fall "
            "(the paper's pseudo-code)", choices=("strict", "not_worse"),
        ),
        "pool": Param(
            str, "all", "every expert, or only those no worse alone than the base",
            choices=("all", "restricted"),
        ),
        "margin": Param(
            float, None, "restricts the pool, instead of the base, to experts whose own score is "
            "so far below the best at most", ge=0,
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if settings.margin is not None and settings.pool == "all":
            return "margin belongs to a restricted pool; set pool=restricted"
        return weight_problem(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(tasks=True)

    def run(self, ask: Ask) -> Guided:
        search = _Search(self, ask)
        chosen = sorted(search.run())
        values = equal_weights(ask, chosen)
        text, recipe, notes = explicit(self, ask, values, without_others(ask, chosen))
        told = [*search.told, search.scorer.summary()]
        warnings = (*ask.warnings, *search.scorer.warnings())
        return Guided(commented(text, told), recipe, (), (*told, *notes), warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "Experts by their own score, the best first; equal ones in the recipe's order.\n"
            "soup = {first}; of each next expert e: keep soup + {e} if score(mean of soup + {e}) > "
            "score(soup), or >= for accept=not_worse.\n"
            "Score: the mean over tasks of their primary metrics, less-is-better ones negated.\n"
            "Merges: N - 1 for N experts (N where a soup of one is not that expert itself)."
        )


class _Search:
    """The greedy search; `told` says what was tried."""

    def __init__(self, guide: Guide, ask: Ask) -> None:
        self.ask, self.settings = ask, ask.settings
        self.told: list[str] = []
        self.scorer = Scorer(guide, ask, 2 * len(ask.experts))
        restricted = self.settings.pool == "restricted" and self.settings.margin is None
        self.reference = self.scorer.reference() if restricted else None
        if restricted and self.reference is None:
            raise GuideError(
                "greedy_soup: pool=restricted compares experts with a base, and there is none: "
                "write `base:` in the tasks file, or set margin="
            )

    def run(self) -> list[int]:
        """The chosen experts' places."""
        own, base = self._alone()
        first, *others = self._pool(own, base)
        soup = [first]
        best = own[first].mean if self.ask.base is None else self._merged(soup).mean
        for i in others:
            found = self._merged([*soup, i])
            equal = found.mean == best and self.settings.accept == "not_worse"
            kept = found.mean > best or equal
            self.told.append(f"{found}: {'kept' if kept else 'left out'}")
            if kept:
                soup, best = [*soup, i], found.mean
        return soup

    def _alone(self) -> tuple[list[Scored], Scored | None]:
        """Every expert's own score, and the base's if it restricts the pool."""
        models = {expert.label: expert.checkpoint.path for expert in self.ask.experts}
        extra = dict([self.reference]) if self.reference is not None else {}
        found = self.scorer.models({**models, **extra})
        self.told += [f"alone: {one}" for one in found.values()]
        base = None if self.reference is None else found[self.reference[0]]
        return [found[expert.label] for expert in self.ask.experts], base

    def _pool(self, own: list[Scored], base: Scored | None) -> list[int]:
        """The places of those that may take part, the best first."""
        order = sorted(range(len(own)), key=lambda i: -own[i].mean)
        least = -math.inf if base is None else base.mean
        if self.settings.margin is not None:
            least = own[order[0]].mean - self.settings.margin
        pool = [i for i in order if own[i].mean >= least]
        if not pool:
            raise GuideError(
                f"greedy_soup: no expert is as good alone as the base ({base}): "
                f"{'; '.join(map(str, own))}. Use the base, or set pool=all"
            )
        if len(pool) < len(own):
            out = ", ".join(own[i].label for i in order if i not in pool)
            self.told.append(f"not in the pool: {out}")
        return pool

    def _merged(self, soup: list[int]) -> Scored:
        label = " + ".join(self.ask.experts[i].label for i in soup)
        edit = without_others(self.ask, soup)
        return self.scorer.candidate(label, equal_weights(self.ask, soup), edit)
