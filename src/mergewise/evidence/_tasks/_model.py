"""Tasks, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergewise.errors import TaskError
from mergewise.evidence.evaluators import Evaluator
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Settings

Model = Path | LiveModel


@dataclass(frozen=True)
class TaskEntry:
    """One task, ready to be scored.

    Attributes:
        kind: the evaluator's name.
        expert: name of the model that is this task's reference.
        expert_named: whether the file said so; otherwise it is a guess by the task's name.
        held_out: no expert was trained on it.
    """

    kind: str
    evaluator: Evaluator
    expert: str = ""
    expert_named: bool = False
    held_out: bool = False

    @property
    def name(self) -> str:
        return self.evaluator.task.name

    @property
    def options(self) -> dict[str, Any]:
        """The evaluator's parameters by name."""
        return dict(vars(self.evaluator.task.options))

    def limited(self, most: int) -> TaskEntry:
        """The same on at most `most` examples (rows of the data) of each split it may score."""
        task = self.evaluator.task
        options = self.options
        solved = options.get("shots_split") if options.get("shots") else None
        data = {n: each if n == solved else each.first(most) for n, each in task.data.items()}
        if "limit" in self.evaluator.params:  # it may have data of its own
            options["limit"] = min(most, options.get("limit") or most)
        evaluator = type(self.evaluator)(replace(task, data=data, options=Settings(options)))
        return replace(self, evaluator=evaluator)


@dataclass(frozen=True)
class Tasks:
    """A tasks file; iterating gives its entries.

    Attributes:
        path: where it was read, for messages.
        base: the model that merging began from, for forgetting and flips.
        experts: reference models by name.
        model: how checkpoints are opened: ``device``, ``dtype``, ``trust_remote_code``.
    """

    entries: tuple[TaskEntry, ...]
    path: str = "<tasks>"
    base: Model | None = None
    experts: Mapping[str, Model] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[TaskEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> TaskEntry:
        """The task called `name`; raises TaskError with the closest names."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
        raise TaskError(f"{self.path}: no task {name!r}; {hint}")

    def only(self, names: Sequence[str]) -> Tasks:
        """Some of the tasks, in the file's order; raises TaskError for an unknown name."""
        chosen = {self[name].name for name in names}
        return replace(self, entries=tuple(e for e in self.entries if e.name in chosen))

    def limited(self, most: int) -> Tasks:
        """Each task on at most `most` examples."""
        return replace(self, entries=tuple(entry.limited(most) for entry in self.entries))
