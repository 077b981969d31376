"""Evidence about models: data, statistics, evaluators.

    collect         statistics of a model on data, into a file
    load_evidence   open such a file
    merge_evidence  add up the files of several workers
    evaluate        scores of several models on the tasks of a file
    load_tasks      read and check a tasks file
    score           one model on one split of one task

Everything is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergewise.evidence._data import Data
    from mergewise.evidence._evaluate import evaluate, score
    from mergewise.evidence._evaluation import Evaluation
    from mergewise.evidence._models._live import LiveModel, fingerprint_of, open_model
    from mergewise.evidence._tasks import Tasks, load_tasks
    from mergewise.evidence.evaluators._base import Evaluator, Failure, Metric, Score, Task
    from mergewise.evidence.statistics._collect import collect
    from mergewise.evidence.statistics._evidence import Evidence, load_evidence
    from mergewise.evidence.statistics._merge import merge_evidence

_HOMES = {
    "Data": "_data",
    "Evaluation": "_evaluation",
    "Evaluator": "evaluators._base",
    "Evidence": "statistics._evidence",
    "Failure": "evaluators._base",
    "LiveModel": "_models._live",
    "Metric": "evaluators._base",
    "Score": "evaluators._base",
    "Task": "evaluators._base",
    "Tasks": "_tasks",
    "collect": "statistics._collect",
    "evaluate": "_evaluate",
    "fingerprint_of": "_models._live",
    "load_evidence": "statistics._evidence",
    "load_tasks": "_tasks",
    "merge_evidence": "statistics._merge",
    "open_model": "_models._live",
    "score": "_evaluate",
}

__all__ = [
    "Data",
    "Evaluation",
    "Evaluator",
    "Evidence",
    "Failure",
    "LiveModel",
    "Metric",
    "Score",
    "Task",
    "Tasks",
    "collect",
    "evaluate",
    "fingerprint_of",
    "load_evidence",
    "load_tasks",
    "merge_evidence",
    "open_model",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mergewise.evidence' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"mergewise.evidence.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
