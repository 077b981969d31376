"""Score models on tasks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mergewise.errors import TaskError
from mergewise.evidence._cache import ScoreCache
from mergewise.evidence._evaluation import Evaluation
from mergewise.evidence._line_up import Given, LineUp, Model, line_up
from mergewise.evidence._ready import Ready, make_ready
from mergewise.evidence._run import Opening, Progress, Run
from mergewise.evidence._tasks import TaskEntry, Tasks, load_tasks
from mergewise.evidence.evaluators import Failure, Score
from mergewise.evidence.models._live import LiveModel


def evaluate(
    models: Iterable[Given] | Mapping[str, Given] | Given,
    tasks: Tasks | str | Path | Mapping[str, Any],
    *,
    split: str = "test",
    base: Given | None = None,
    experts: Mapping[str, Given] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool | None = None,
) -> Evaluation:
    """Score models on every task of a file, the file's base and experts too.

    What can be checked is checked before the first model is loaded. A score that fails is
    recorded, and the others go on. Finished scores are kept in the cache, so that an interrupted
    run continues and a second one reads them; models in memory without a fingerprint, and data
    that is not in files, are scored anew.

    Args:
        models: checkpoint folders or models in memory, with names of the caller's if a mapping.
        tasks: a tasks file, its path, or its content as a mapping.
        split: which part of each task's data.
        base: the model that merging began from; overrides the file's.
        experts: reference models by name, besides the file's.
        device, dtype, trust_remote_code: how checkpoints are opened; override the file's.

    Raises:
        TasksFileError: for mistakes in the tasks file.
        MergewiseError: for models, data and options that cannot work.
    """
    begun = time.perf_counter()
    tasks = tasks if isinstance(tasks, Tasks) else load_tasks(tasks)
    lined = line_up(models, tasks, base, experts)
    given = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    opening = Opening(**{**tasks.model, **{k: v for k, v in given.items() if v is not None}})
    ready = make_ready(lined, tasks, split)
    run = Run(split, opening, ready, ScoreCache() if cache else None)
    jobs = [(name, entry) for name in lined.models for entry in tasks]
    run.take_known(lined, jobs)
    run.score_others(lined, jobs, progress or (lambda step: None))
    return _evaluation(run, lined, tasks, time.perf_counter() - begun)


def score(
    model: Given,
    task: TaskEntry | Mapping[str, Any],
    split: str = "test",
    **options: Any,
) -> dict[str, float]:
    """One model on one split of one task: its metrics by name.

    Args:
        task: an entry of `Tasks`, or what a tasks file says of one task, as a mapping.
        options: as of `evaluate`.

    Raises:
        TaskError: if it cannot be scored.
    """
    tasks = Tasks((task,)) if isinstance(task, TaskEntry) else load_tasks({"tasks": [task]})
    found = evaluate({"model": model}, tasks, split=split, **options)
    (result,) = found.scores["model"].values()
    if isinstance(result, Failure):
        raise TaskError(f"task {tasks.entries[0].name}: {result.message}")
    return dict(result.metrics)


def _evaluation(run: Run, lined: LineUp, tasks: Tasks, seconds: float) -> Evaluation:
    scores = {
        name: {entry.name: run.results[name, entry.name] for entry in tasks}
        for name in lined.models
    }
    return Evaluation(
        split=run.split,
        scores=scores,
        primary={entry.name: _primary(entry, run, lined) for entry in tasks},
        base=lined.base,
        experts=lined.experts,
        held_out=frozenset(entry.name for entry in tasks if entry.held_out),
        cached=run.known,
        seconds=seconds,
        provenance=_provenance(run, lined, tasks),
    )


def _primary(entry: TaskEntry, run: Run, lined: LineUp) -> tuple[str, Literal["max", "min"]]:
    """The evaluator's own; of one that names its metrics as it goes, the first."""
    results = [run.results[name, entry.name] for name in lined.models]
    found = next((r.metrics for r in results if isinstance(r, Score)), {})
    declared = entry.evaluator.metrics
    metric = next((m for m in declared if m in found or not found), next(iter(found), "score"))
    if metric in declared:
        return metric, declared[metric].best
    return metric, "min" if entry.options.get("best") == "min" else "max"


def _provenance(run: Run, lined: LineUp, tasks: Tasks) -> dict[str, Any]:
    return {
        "tasks_file": tasks.path,
        "models": {
            name: {"path": _path(model), "fingerprint": run.ready.models[name]}
            for name, model in lined.models.items()
        },
        "tasks": {entry.name: _described(entry, run.ready) for entry in tasks},
        "settings": {**dataclasses.asdict(run.opening), "device": run.device},
        "versions": run.versions,
    }


def _path(model: Model) -> str | None:
    place = model.reference if isinstance(model, LiveModel) else model
    return None if place is None else str(place)


def _described(entry: TaskEntry, ready: Ready) -> dict[str, Any]:
    task = entry.evaluator.task
    return {
        "kind": entry.kind,
        "version": entry.evaluator.version,
        "options": entry.options,
        "data": {
            split: {
                "source": data.name,
                "rows": list(data.rows),
                "fingerprint": ready.data[entry.name][split],
            }
            for split, data in task.data.items()
        },
        "head": None if task.head is None else str(task.head),
        "head_sha256": ready.heads[entry.name] or None,
    }
