"""Kinds of evaluation task; one file a kind."""

from __future__ import annotations

from mergewise.evidence.evaluators._base import Evaluator, Failure, Metric, Score, Task
from mergewise.evidence.evaluators._heads import Head, load_head, save_head
from mergewise.evidence.evaluators._registry import all_evaluators, get_evaluator

__all__ = [
    "Evaluator",
    "Failure",
    "Head",
    "Metric",
    "Score",
    "Task",
    "all_evaluators",
    "get_evaluator",
    "load_head",
    "save_head",
]
