"""Kinds of evaluation task; one file a kind."""

from __future__ import annotations

from mergewise.evidence.evaluators._base import Evaluator, Failure, Metric, Score, Task
from mergewise.evidence.evaluators._registry import all_evaluators, get_evaluator

__all__ = [
    "Evaluator",
    "Failure",
    "Metric",
    "Score",
    "Task",
    "all_evaluators",
    "get_evaluator",
]
