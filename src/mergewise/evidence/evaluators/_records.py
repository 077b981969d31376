"""A task's records, cut to its limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from mergewise.errors import TaskError
from mergewise.evidence._data import Record
from mergewise.evidence.evaluators._base import Task
from mergewise.methods import Param

# declared, it leaves other splits whole: solved examples come from them
LIMIT: Final[Mapping[str, Param]] = {
    "limit": Param(int, None, "at most so many examples, the first", ge=1)
}


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


def first_records(task: Task) -> Iterator[Record]:
    """The first record of each split, by which options are checked.

    Raises:
        TaskError: if a split is empty.
        DataError: if the data cannot be read.
    """
    for split, data in task.data.items():
        record = next(iter(data), None)
        if record is None:
            raise TaskError(f"task {task.name}: no records in split {split!r} of {data.name}")
        yield record
