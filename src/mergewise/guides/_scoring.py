"""Scores of models, and of what candidate recipes would make, on a guide's tasks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from mergewise.engine import merge
from mergewise.errors import InterruptedMergeError, OutputError, TaskError
from mergewise.evidence import Evaluation, LiveModel, Score, Tasks, evaluate
from mergewise.guides._base import Ask, Guide
from mergewise.guides._document import Edit, Values, explicit

_OPENING = ("device", "dtype", "trust_remote_code")


@dataclass(frozen=True)
class Scored:
    """What one model reached.

    Attributes:
        label: what it is called in notes.
        by_task: the primary metric of each task, as it is.
        mean: over tasks, of metrics whose sign is turned where less is better; minus infinity if
            one of them is not a number.
        scores: everything, by task.
    """

    label: str
    by_task: Mapping[str, float]
    mean: float
    scores: Mapping[str, Score]

    def __str__(self) -> str:
        each = ", ".join(f"{task} {value:.6g}" for task, value in self.by_task.items())
        return f"{self.label}: {each if len(self.by_task) == 1 else f'{self.mean:.6g} ({each})'}"


class Scorer:
    """Scores models and candidates one after the other.

    A candidate is merged into a temporary folder beside the recipe's and removed again. The
    evaluators' cache makes a second run of the same guide cheap: candidates are merged anew, and
    their scores are known.

    Args:
        most: how many models and candidates there will be at most, for telling.

    Attributes:
        count: how many were scored so far.
    """

    def __init__(self, guide: Guide, ask: Ask, most: int) -> None:
        self.count, self._most = 0, most
        self._guide, self._ask = guide, ask
        self._tasks = _chosen(ask)
        given = self._tasks.model
        self._opening = {
            key: ask.options[key]
            for key in _OPENING
            # the command line always names a device, the tasks file only for a reason
            if ask.options.get(key) and not (key == "device" and "device" in given)
        }

    def models(self, models: Mapping[str, Path | LiveModel]) -> dict[str, Scored]:
        """Scores of models as they are, by label.

        Raises:
            TaskError: for the first score that failed.
            MergewiseError: for tasks, data and models that cannot work, before any is loaded.
        """
        self._tell(f"scoring {', '.join(models)}", len(models))
        names: dict[Path | LiveModel, list[str]] = {}
        for label, model in models.items():
            names.setdefault(_resolved(model), []).append(label)
        found = self._evaluate({labels[0]: model for model, labels in names.items()})
        return {
            label: replace(found[labels[0]], label=label)
            for labels in names.values()
            for label in labels
        }

    def candidate(
        self,
        label: str,
        values: Sequence[Values | Sequence[Values]] = (),
        edit: Edit | None = None,
    ) -> Scored:
        """The score of what a recipe would make; see `explicit` for its arguments.

        Raises:
            TaskError: if a score failed.
            RecipeError: if the recipe cannot be run.
            MergewiseError: as the engine and evaluators raise.
        """
        self._tell(f"merging and scoring {label}", 1)
        _, recipe, _ = explicit(self._guide, self._ask, values, edit)
        try:
            with tempfile.TemporaryDirectory(prefix=".mergewise-", dir=self._place()) as folder:
                out = Path(folder) / "candidate"
                merge(recipe, out, device=self._ask.options.get("device") or "auto")
                return self._evaluate({label: out})[label]
        except InterruptedMergeError:
            raise KeyboardInterrupt from None  # nothing of it is kept to go on with
        except OSError as error:
            raise OutputError(
                f"{self._place()}: no candidate can be merged there: {error}"
            ) from None

    def reference(self) -> tuple[str, Path | LiveModel] | None:
        """The base model of the recipe, else of the tasks file, and what it is called."""
        if self._ask.base is not None:
            return str(self._ask.plan.recipe.output.base_model), self._ask.base.path
        base = None if self._ask.tasks is None else self._ask.tasks.base
        if base is None:
            return None
        return ("base" if isinstance(base, LiveModel) else str(base)), base

    def summary(self) -> str:
        """How many scorings there were, on what."""
        tasks = ", ".join(entry.name for entry in self._tasks)
        return f"{self.count} scorings of models and merges on {tasks} ({self._ask.split} split)"

    def warnings(self) -> tuple[str, ...]:
        """What is odd about a mean over these tasks, but no reason to refuse."""
        kinds = sorted({entry.evaluator.primary for entry in self._tasks})
        if len(kinds) < 2:
            return ()
        return (
            f"the tasks are scored by unlike metrics ({', '.join(kinds)}), and their mean follows "
            "the one that varies most; choose by tasks of one metric",
        )

    def _tell(self, line: str, more: int) -> None:
        first, self.count = self.count + 1, self.count + more
        number = str(first) if more == 1 else f"{first} to {self.count}"
        self._ask.tell(f"{line} ({number} of at most {max(self._most, self.count)})")

    def _place(self) -> Path | None:
        """Where candidates go: beside the recipe, whose disk has room for a model."""
        for path in (self._ask.folder, self._ask.out):
            if path is not None and path.absolute().parent.is_dir():
                return path.absolute().parent
        return None

    def _evaluate(self, models: Mapping[str, Path | LiveModel]) -> dict[str, Scored]:
        found = evaluate(models, self._tasks, split=self._ask.split, **self._opening)
        for label, task, failure in found.failures:
            raise TaskError(f"{label}: task {task}: {failure.message}")
        return {label: _scored(label, found) for label in models}


def _resolved(model: Path | LiveModel) -> Path | LiveModel:
    """One path for each folder; BASE+ADAPTER stays as it is written."""
    return model.resolve() if isinstance(model, Path) and model.exists() else model


def _chosen(ask: Ask) -> Tasks:
    """The tasks, without models of their own, which are not asked for."""
    assert ask.tasks is not None
    tasks = replace(ask.tasks, base=None, experts={})
    limit = ask.options.get("limit")
    return tasks.limited(limit) if limit else tasks


def _scored(label: str, found: Evaluation) -> Scored:
    by_task: dict[str, float] = {}
    oriented = []
    for task, (_, best) in found.primary.items():
        value = found.value(label, task)
        by_task[task] = math.nan if value is None else value
        oriented.append(by_task[task] if best == "max" else -by_task[task])
    mean = fmean(oriented) if all(map(math.isfinite, oriented)) else -math.inf
    scores = {t: s for t, s in found.scores[label].items() if isinstance(s, Score)}
    return Scored(label, by_task, mean, scores)
