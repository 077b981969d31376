"""What can be found wrong with an evaluation before the first model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mergewise.errors import DataError, MergewiseError, MissingExtraError, TaskError
from mergewise.evidence._line_up import LineUp, Model
from mergewise.evidence._tasks import TaskEntry, Tasks
from mergewise.evidence.models._live import LiveModel, fingerprint_of


@dataclass
class Ready:
    """What was found out on the way.

    Attributes:
        models: fingerprint by model; None if nobody vouches for the weights.
        data: by task, fingerprint by split; None if it is no file.
        heads: by task, SHA-256 of the head's file; empty if it has none.
        marks: by task, what else decides its numbers.
    """

    models: dict[str, str | None] = field(default_factory=dict)
    data: dict[str, dict[str, str | None]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str | None] = field(default_factory=dict)


def make_ready(lined: LineUp, tasks: Tasks, split: str) -> Ready:
    """Look at every model and every task.

    Raises:
        MergewiseError: the one problem found, or a TaskError that lists all.
    """
    ready = Ready()
    problems: list[MergewiseError] = []

    def tried(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MergewiseError as error:
            problems.append(error)
            return None

    tried(partial(_require_transformers, lined.models.values(), tasks))
    for name, model in lined.models.items():
        ready.models[name] = tried(partial(_fingerprint, model))
    for entry in tasks:
        tried(partial(_naming, entry, partial(_look_at, entry, split, ready)))
    _report(problems)
    for name, model in lined.models.items():
        sizes = _sizes(model)
        for entry in tasks:
            if sizes and entry.evaluator.role() is not None:
                tried(partial(entry.evaluator.check_model, name, sizes))
                tried(partial(_see_tokens, name, model, entry, split, tasks))
    _report(problems)
    return ready


def _naming(entry: TaskEntry, look: Callable[[], None]) -> None:
    """Call `look`; an error that does not say which task it is about is made to."""
    try:
        look()
    except MergewiseError as error:
        if f"task {entry.name}" not in str(error):
            error.args = (f"task {entry.name}: {error}",)
        raise


def _report(problems: list[MergewiseError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TaskError(f"{len(problems)} problems, found before any model was loaded:\n{lines}")


def _require_transformers(models: Iterable[Model], tasks: Tasks) -> None:
    needed = any(entry.evaluator.role() is not None for entry in tasks)
    given = all(isinstance(model, LiveModel) for model in models)
    if needed and not given and importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("hf", "transformers")


def _fingerprint(model: Model) -> str | None:
    return model.fingerprint if isinstance(model, LiveModel) else fingerprint_of(model)


def _sizes(model: Model) -> set[int]:
    """Every size of a dimension in a checkpoint's tensors; none of a model in memory."""
    from mergewise.checkpoint import open_runnable

    if isinstance(model, LiveModel):
        return set()
    return {size for info in open_runnable(model).tensors.values() for size in info.shape}


def _look_at(entry: TaskEntry, split: str, ready: Ready) -> None:
    task = entry.evaluator.task
    if task.data or entry.evaluator.needs_data:
        data = task.split(split)
        if next(iter(data), None) is None:
            raise TaskError(f"task {task.name}: {data.name} has no rows, or none of those chosen")
    ready.data[task.name] = {name: each.fingerprint() for name, each in task.data.items()}
    ready.heads[task.name] = _head(entry)
    _check(entry, split)
    ready.marks[task.name] = entry.evaluator.mark()


def _see_tokens(name: str, model: Model, entry: TaskEntry, split: str, tasks: Tasks) -> None:
    """That the model knows every token of the task's texts."""
    from mergewise.checkpoint import open_reference
    from mergewise.evidence._vocabulary import see_tokens

    task, role = entry.evaluator.task, entry.evaluator.role()
    if isinstance(model, LiveModel) or role is None or split not in task.data:
        return
    trust = bool(tasks.model.get("trust_remote_code"))
    checkpoint = open_reference(model)
    see_tokens(name, checkpoint, task.data[split], role, trust=trust, plain=True)


def _check(entry: TaskEntry, split: str) -> None:
    task = entry.evaluator.task
    try:
        entry.evaluator.check()
    except DataError as error:
        source = task.data[split].name if split in task.data else ""
        if source in str(error):
            raise
        raise DataError(f"{source}: {error}") from None


def _head(entry: TaskEntry) -> str:
    from mergewise.checkpoint import sha256_file

    head = entry.evaluator.task.head
    return "" if head is None else sha256_file(head)
