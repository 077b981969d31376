"""What a guide looks at before the first model is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mergewise.errors import TaskError
from mergewise.evidence import see_tokens
from mergewise.guides._base import Ask

if TYPE_CHECKING:
    from mergewise.evidence import TaskEntry


def see_all_tokens(ask: Ask, options: Mapping[str, Any]) -> None:
    """Look at every expert's data before the first is run; raises DataError."""
    from mergewise.evidence.statistics import role_of

    trust = bool(options.get("trust_remote_code"))
    for expert in ask.experts:
        data, model = ask.data[expert.label], expert.checkpoint
        if not isinstance(data.source, Iterator):
            template = options.get("template")
            see_tokens(expert.label, model, data, role_of(model), template, trust)


def see_split(entry: TaskEntry, split: str) -> None:
    """See that a task has data of the split that a guide scores by; raises TaskError."""
    task = entry.evaluator.task
    if not task.data and not entry.evaluator.needs_data:
        return
    try:
        task.split(split)
    except TaskError as error:
        raise TaskError(
            f"{error}; a guide scores by {split!r} unless told another: --task-split NAME "
            "(`task_split` under `guide`; split=)"
        ) from None
