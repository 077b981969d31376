"""Kinds of evaluation task; one file a kind."""

from __future__ import annotations

from mergewise.evidence.evaluators._base import Evaluator, Failure, Metric, Score, Task
from mergewise.evidence.evaluators._features import Batch, features
from mergewise.evidence.evaluators._heads import Head, load_head, save_head
from mergewise.evidence.evaluators._likelihood import Span, score_spans
from mergewise.evidence.evaluators._registry import all_evaluators, get_evaluator
from mergewise.evidence.evaluators._surgery import Surgery, surgery_file

__all__ = [
    "Batch",
    "Evaluator",
    "Failure",
    "Head",
    "Metric",
    "Score",
    "Span",
    "Surgery",
    "Task",
    "all_evaluators",
    "features",
    "get_evaluator",
    "load_head",
    "save_head",
    "score_spans",
    "surgery_file",
]
