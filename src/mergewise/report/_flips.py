"""How the answers of two models differ, example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mergewise.report._measures import Measures, mean_of_all

References = Mapping[str, str | None]
Compare = Callable[[Sequence[Any], Sequence[Any]], float]


def comparisons(measures: Measures, model: str) -> dict[str, Any]:
    """Flips against the base and the tasks' experts, and agreement with every expert.

    A negative flip is an example that the reference got right and the model gets wrong (Yan et
    al. 2021, arXiv 2011.09161), a positive one the reverse; both are shares of the examples.
    Agreement is the share of equal predictions. Means are over tasks.
    """
    evaluation = measures.evaluation
    base: References = dict.fromkeys(measures.tasks, evaluation.base)
    own: References = {task: evaluation.experts.get(task) for task in measures.tasks}
    made: dict[str, Any] = {
        name: {
            "base": _over_tasks(measures, model, base, "correct", compare),
            "expert": _over_tasks(measures, model, own, "correct", compare),
        }
        for name, compare in (("negative_flips", negative), ("positive_flips", positive))
    }
    experts = dict.fromkeys(evaluation.experts.values())
    made["agreement"] = {
        expert: _agreement(measures, model, expert, [t for t in own if own[t] == expert])
        for expert in experts
    }
    return made


def negative(model: Sequence[Any], reference: Sequence[Any]) -> float:
    """Share that the reference got right and the model wrong."""
    pairs = zip(model, reference, strict=True)
    return fmean(float(bool(theirs) and not ours) for ours, theirs in pairs)


def positive(model: Sequence[Any], reference: Sequence[Any]) -> float:
    """Share that the model gets right and the reference wrong."""
    return negative(reference, model)


def equal(model: Sequence[Any], reference: Sequence[Any]) -> float:
    """Share of equal values."""
    return fmean(float(ours == theirs) for ours, theirs in zip(model, reference, strict=True))


def _agreement(
    measures: Measures, model: str, expert: str, own: Sequence[str]
) -> dict[str, Any] | None:
    """Over all tasks, and over the expert's own."""
    references: References = dict.fromkeys(measures.tasks, expert)
    found = _over_tasks(measures, model, references, "prediction", equal)
    if found is not None:
        found["own"] = mean_of_all(found["by_task"][t] for t in own if t in found["by_task"])
    return found


def _over_tasks(
    measures: Measures,
    model: str,
    references: References,
    outcome: str,
    compare: Compare,
) -> dict[str, Any] | None:
    """Over tasks where the reference has outcomes; no mean where the model lacks some of them."""
    found: dict[str, float | None] = {}
    for task, reference in references.items():
        one, other = measures.score(model, task), measures.score(reference, task)
        theirs = other.outcomes.get(outcome, ()) if other is not None else ()
        ours = one.outcomes.get(outcome, ()) if one is not None else ()
        if len(theirs):
            found[task] = compare(ours, theirs) if len(ours) == len(theirs) else None
    return {"mean": mean_of_all(found.values()), "by_task": found} if found else None
