"""A task's records, cut to its limit."""

from __future__ import annotations

import itertools

from mergewise.errors import TaskError
from mergewise.evidence._data import Record
from mergewise.evidence.evaluators._base import Task


def records(task: Task, split: str) -> list[Record]:
    """The records of a split, at most `limit` of them where the task has that option.

    Raises:
        TaskError: if the task has no such split, or it is empty.
        DataError: if the data cannot be read.
    """
    limit = vars(task.options).get("limit")
    found = list(itertools.islice(task.split(split), limit))
    if not found:
        raise TaskError(
            f"task {task.name}: no records in split {split!r} of {task.split(split).name}"
        )
    return found
