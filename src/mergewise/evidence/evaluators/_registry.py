"""Every kind of evaluation task: those of this package, and those of installed plugins."""

from __future__ import annotations

import functools

from mergewise._registry import chosen, registered
from mergewise.errors import TaskError
from mergewise.evidence.evaluators._base import Evaluator


@functools.cache
def all_evaluators() -> dict[str, type[Evaluator]]:
    """Every registered evaluator by name, in alphabetical order.

    Raises:
        MergewiseError: if two evaluators claim one name.
    """
    home = "mergewise.evidence.evaluators"
    return registered(home, Evaluator, "evaluators")  # type: ignore[type-abstract]


def get_evaluator(kind: str) -> type[Evaluator]:
    """The evaluator called `kind`.

    Raises:
        TaskError: with the closest names, if there is none.
    """
    return chosen("kind of task", kind, all_evaluators(), "mergewise evaluate --list", TaskError)
