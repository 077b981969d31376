"""What is said of a model that was scored on several tasks, beside its base and the experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from mergewise.evidence.evaluators import Score
from mergewise.report._bootstrap import interval, resampled_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergewise.evidence import Evaluation

ByTask = Mapping[str, float | None]


class Measures:
    """Every measure of one evaluation; see `mergewise.report.evaluation.measures`.

    Attributes:
        notes: why some numbers are refused; grows as they are asked for.
    """

    def __init__(self, evaluation: Evaluation, resamples: int = 0, seed: int = 0) -> None:
        self.evaluation = evaluation
        self.notes: list[str] = []
        self._resamples, self._seed = resamples, seed

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks, in the file's order."""
        return list(self.evaluation.primary)

    @cached_property
    def trained(self) -> list[str]:
        """Tasks that are not held out."""
        return [task for task in self.tasks if task not in self.evaluation.held_out]

    @cached_property
    def compared(self) -> list[str]:
        """Trained tasks that have an expert; normalised values are means over these."""
        alone = [task for task in self.trained if task not in self.evaluation.experts]
        if alone and len(alone) == len(self.trained):
            self._note("no normalised scores: no experts are given")
        elif alone:
            self._note(f"no expert for {_some(alone)}: left out of normalised scores")
        return [task for task in self.trained if task not in alone]

    @cached_property
    def metric(self) -> str | None:
        """The primary metric that all tasks have in common, if they have."""
        kinds = {self.evaluation.primary[task] for task in self.tasks}
        if len(kinds) > 1:
            names = ", ".join(sorted({name for name, _ in kinds}))
            self._note(f"no mean over unlike metrics: each of {names} has its own")
        return next(iter(kinds))[0] if len(kinds) == 1 else None

    def score(self, model: str | None, task: str) -> Score | None:
        """A model's score, None if it failed or was not asked for."""
        row = self.evaluation.scores.get(model, {}) if model is not None else {}
        found = row.get(task)
        return found if isinstance(found, Score) else None

    def value(self, model: str | None, task: str) -> float | None:
        """A model's primary metric, None if there is none or it is not finite."""
        found = self.score(model, task)
        if found is None:
            return None
        number = found.metrics.get(self.evaluation.primary[task][0])
        return number if number is not None and math.isfinite(number) else None

    def of(self, model: str) -> dict[str, Any]:
        """Everything about one model, as JSON values."""
        values = {task: self.value(model, task) for task in self.tasks}
        made: dict[str, Any] = {
            "mean": self._single(self._means({t: values[t] for t in self.trained})),
            "means": self._means({t: values[t] for t in self.trained}),
            "held_out": self._means({t: values[t] for t in self.tasks if t not in self.trained}),
            "worst": self._worst(values),
            "normalised": self._summary(self.normalised(model)),
            "nai": self._summary(self.nai(model)),
            "forgetting": self._forgetting(model),
            "failed": [task for task in self.tasks if self.score(model, task) is None],
        }
        if self._resamples:
            made["intervals"] = self._intervals(model)
        return made

    def normalised(self, model: str) -> dict[str, float | None]:
        """Score over the expert's by task; expert's over score where less is better."""
        return {task: self._ratio(task, self.value(model, task)) for task in self.compared}

    def nai(self, model: str) -> dict[str, float | None]:
        """(score - base) / (expert - base) by task."""
        if self.evaluation.base is None:
            return {}
        return {task: self._improvement(model, task) for task in self.compared}

    def _ratio(self, task: str, value: float | None) -> float | None:
        expert = self._expert(task)
        if expert is None or value is None:
            return None
        found = ratio(value, expert, self._best(task))
        if found is None:
            self._note(f"{task}: no ratio, a score is not positive")
        return found

    def _expert(self, task: str) -> float | None:
        """The reference score of a task; a note if it is missing."""
        name = self.evaluation.experts.get(task)
        found = self.value(name, task)
        if found is None:
            self._note(f"{task}: no normalised score, its expert {name} has none")
        return found

    def _improvement(self, model: str, task: str) -> float | None:
        base, expert = self.value(self.evaluation.base, task), self._expert(task)
        value = self.value(model, task)
        if base is None or expert is None or value is None:
            return None
        reach = gain(expert, base, self._best(task))
        if reach <= 0:
            self._note(f"{task}: no NAI, its expert is no better than the base")
            return None
        return gain(value, base, self._best(task)) / reach

    def _forgetting(self, model: str) -> dict[str, Any] | None:
        """Against the base, on every task it was scored on."""
        lost: dict[str, float | None] = {}
        for task in self.tasks:
            base, value = self.value(self.evaluation.base, task), self.value(model, task)
            if base is not None:
                lost[task] = (
                    None if value is None else max(0.0, gain(base, value, self._best(task)))
                )
        if not lost:
            return None
        means = self._means(lost)
        below = sum(1 for loss in lost.values() if loss)
        known = sum(1 for loss in lost.values() if loss is not None)
        return {
            "mean": self._single(means), "means": means, "by_task": lost,
            "below_base": below, "tasks": known,
        }  # fmt: skip

    def _means(self, values: ByTask) -> dict[str, float | None]:
        """Means by metric; None where a value is missing, since other models have it."""
        groups: dict[str, list[float | None]] = {}
        for task, value in values.items():
            groups.setdefault(self.evaluation.primary[task][0], []).append(value)
        return {metric: mean_of_all(found) for metric, found in groups.items()}

    def _single(self, means: Mapping[str, float | None]) -> float | None:
        return means.get(self.metric) if self.metric is not None else None

    def _worst(self, values: ByTask) -> dict[str, Any] | None:
        """The trained task with the lowest score, among alike metrics."""
        known = {t: v for t in self.trained if (v := values[t]) is not None}
        if self.metric is None or not known or len(known) < len(self.trained):
            return None
        choose: Callable[..., str] = min if self._more_is_better(self.tasks[0]) else max
        task = choose(known, key=lambda t: known[t])
        return {"task": task, "value": known[task]}

    def _summary(self, by_task: ByTask) -> dict[str, Any] | None:
        if not by_task:
            return None
        known = {task: value for task, value in by_task.items() if value is not None}
        if len(known) < len(by_task):
            return {"mean": None, "median": None, "worst": None, "by_task": dict(by_task)}
        worst = min(known, key=lambda t: known[t])
        return {
            "mean": fmean(known.values()),
            "median": median(known.values()),
            "worst": {"task": worst, "value": known[worst]},
            "by_task": dict(by_task),
        }

    def _intervals(self, model: str) -> dict[str, Any]:
        """95 % intervals of the primary metrics and of their means, experts taken as fixed."""
        drawn = {task: self._draws(model, task) for task in self.tasks}
        known = {task: means for task, means in drawn.items() if means is not None}
        made: dict[str, Any] = {"by_task": {task: interval(means) for task, means in known.items()}}
        if self.metric is not None and self.trained and all(t in known for t in self.trained):
            made["mean"] = _mean_interval([known[t] for t in self.trained])
        references = {task: self._expert(task) for task in self.compared}
        if references and all(t in known and r and r > 0 for t, r in references.items()):
            shares = [
                known[t] / r if self._more_is_better(t) else r / known[t]
                for t, r in references.items()
                if r
            ]
            made["normalised"] = _mean_interval(shares)
        return made

    def _draws(self, model: str, task: str) -> NDArray[Any] | None:
        score, metric = self.score(model, task), self.evaluation.primary[task][0]
        if score is None or self.value(model, task) is None:
            return None
        means = resampled_means(score, metric, self._resamples, self._seed, task)
        if means is None:
            self._note(f"{task}: no interval, {metric} is no mean over two or more examples")
        return means

    def _best(self, task: str) -> Literal["max", "min"]:
        return self.evaluation.primary[task][1]

    def _more_is_better(self, task: str) -> bool:
        return self._best(task) == "max"

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def gain(value: float, reference: float, best: Literal["max", "min"]) -> float:
    """How much better a score is than another, in the metric's own units."""
    return value - reference if best == "max" else reference - value


def ratio(value: float, expert: float, best: Literal["max", "min"]) -> float | None:
    """Score over the expert's, the expert's over the score where less is better.

    None if the expert's score, or the one that is divided by, is not positive.
    """
    above, below = (value, expert) if best == "max" else (expert, value)
    return above / below if expert > 0 and below > 0 else None


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None if there is no value or one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def _mean_interval(draws: Sequence[NDArray[Any]]) -> tuple[float, float]:
    import numpy

    return interval(numpy.mean(draws, axis=0))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
