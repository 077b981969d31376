"""How much of a model's predecessor to mix in, so that old answers that were right stay right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mergewise.errors import GuideError
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import Edit, Values, explicit
from mergewise.guides._pair import Pair, pair_of, pair_problem, shares_alpha
from mergewise.guides._scoring import Scored, Scorer
from mergewise.guides._weighting import commented, weights
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

Answers = Mapping[str, Sequence[Any]]
"""By task: whether each example was answered rightly."""


@dataclass(frozen=True)
class _Point:
    """One merge: accuracy, and the share of examples that only the old model got right."""

    alpha: float
    accuracy: float
    flips: float

    def __str__(self) -> str:
        return (
            f"alpha {self.alpha:.6g}: accuracy {self.accuracy:.6g}, negative flips {self.flips:.6g}"
        )


class BackwardCompatible(Guide):
    """The share of an old model in its successor with the fewest negative flips."""

    name = "backward_compatible"
    summary = "share of an old model with the fewest negative flips, at the new one's accuracy"
    data = "labelled"
    source = "BCWI, Schumann et al. 2024, arXiv 2301.10546"
    variant = (
        "the rule by which alpha is chosen is unverified; the Fisher form is a recipe with the "
        "method `bcwi`"
    )
    verified = "idea"
    writes = "weight"
    based = False
    params = {
        "epsilon": Param(
            float, 0.0, "how far accuracy may fall below the new model's", ge=0, le=1
        ),
        "steps": Param(int, 10, "alpha is tried from 0 to 1 in so many steps", ge=1, le=100),
        "old": Param(str, None, "the old one of two models without a base; default: the first"),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return None if shares_alpha(recipe) else pair_problem(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(tasks=True)

    def run(self, ask: Ask) -> Guided:
        pair = pair_of(self.name, ask, ask.settings.old)
        scorer = Scorer(self, ask, ask.settings.steps + 3)
        ends = scorer.models(pair.paths())
        old, new = _correct(ends[pair.old]), _correct(ends[pair.new])
        least = _accuracy(new) - ask.settings.epsilon
        steps = ask.settings.steps
        points = [_point(ask, scorer, pair, old, i / steps) for i in range(steps + 1)]
        allowed = [p for p in points if p.accuracy >= least - 1e-12]
        if not allowed:
            raise GuideError(
                f"backward_compatible: no alpha reaches accuracy {least:.6g}: "
                f"{'; '.join(map(str, points))}. Allow a greater epsilon"
            )
        best = min(allowed, key=lambda p: (p.flips, -p.accuracy, p.alpha))
        text, recipe, notes = explicit(self, ask, *_written(ask, pair, best.alpha))
        told = [
            f"old {pair.old}: accuracy {_accuracy(old):.6g}",
            f"new {pair.new}: accuracy {_accuracy(new):.6g}, negative flips {_flips(old, new):.6g}",
            *(f"{p}{': chosen' if p is best else ''}" for p in points),
            scorer.summary(),
        ]
        return Guided(commented(text, told), recipe, (), (*told, *notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "theta(alpha) = alpha old + (1 - alpha) new, alpha = 0, 1/steps, ..., 1; with a base "
            "and one expert, the base is the old model and the weight is 1 - alpha; `bcwi` has "
            "its own alpha.\n"
            "Of those with accuracy >= accuracy(new) - epsilon, the one with the least share of "
            "examples that the old model got right and the merge wrong; then the more accurate, "
            "then the smaller alpha. Both are means over tasks."
        )


def _point(ask: Ask, scorer: Scorer, pair: Pair, old: Answers, alpha: float) -> _Point:
    label = f"alpha {alpha:.6g}"
    found = _correct(scorer.candidate(label, *_written(ask, pair, alpha)))
    return _Point(alpha, _accuracy(found), _flips(old, found))


def _written(ask: Ask, pair: Pair, alpha: float) -> tuple[list[Values], Edit | None]:
    """Alpha as weights, or as the method's own parameter."""
    if not shares_alpha(ask.plan.recipe):
        return weights(pair.each(1 - alpha, alpha)), None

    def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
        parameters = {**(document.get("parameters") or {}), "alpha": round(alpha, 9)}
        return [{**document, "parameters": parameters}]

    return [], edit


def _correct(scored: Scored) -> Answers:
    for task, score in scored.scores.items():
        if not score.outcomes.get("correct"):
            have = ", ".join(score.outcomes) or "none"
            raise GuideError(
                f"backward_compatible: task {task} does not tell which examples are right "
                f"(outcomes: {have}); it needs tasks such as classification or generation"
            )
    return {task: score.outcomes["correct"] for task, score in scored.scores.items()}


def _accuracy(answers: Answers) -> float:
    return fmean(fmean(map(bool, each)) for each in answers.values())


def _flips(old: Answers, new: Answers) -> float:
    return fmean(_lost(old[task], new[task]) for task in old)


def _lost(old: Sequence[Any], new: Sequence[Any]) -> float:
    """The share that the old model got right and the new one wrong."""
    return fmean(bool(a and not b) for a, b in zip(old, new, strict=True))
