"""What an evaluation found: scores of models on tasks, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergewise.evidence._evaluation_text import as_text
from mergewise.evidence.evaluators import Failure, Score

Result = Score | Failure


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of several models on the tasks of a file; printed, a table of primary metrics.

    Attributes:
        split: which part of the data was scored.
        scores: by model, then task.
        primary: by task, the metric by which models are compared, and whether ``max`` or ``min``
            of it is best.
        base: name of the model that merging began from.
        experts: by task, name of the model that is its reference.
        held_out: tasks no expert was trained on.
        cached: how many scores were known from earlier runs.
        seconds: wall time.
        provenance: ``models`` (path, fingerprint), ``tasks`` (kind, options, data and their
            hashes), ``settings`` and ``versions``.
    """

    split: str
    scores: Mapping[str, Mapping[str, Result]]
    primary: Mapping[str, tuple[str, Literal["max", "min"]]]
    base: str | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    held_out: frozenset[str] = frozenset()
    cached: int = 0
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return as_text(self)

    @property
    def failures(self) -> list[tuple[str, str, Failure]]:
        """(model, task, failure) of what could not be scored."""
        return [
            (model, task, result)
            for model, row in self.scores.items()
            for task, result in row.items()
            if isinstance(result, Failure)
        ]

    def value(self, model: str, task: str) -> float | None:
        """A model's primary metric on a task; None where it failed."""
        result = self.scores[model].get(task)
        return result.metrics.get(self.primary[task][0]) if isinstance(result, Score) else None

    def to_dict(self, outcomes: bool = False) -> dict[str, Any]:
        """Everything as JSON values; numbers that are not finite are null.

        Args:
            outcomes: with the outcome of each example, which may be long.
        """
        return {
            "format": 1,
            "split": self.split,
            "base": self.base,
            "experts": dict(self.experts),
            "held_out": sorted(self.held_out),
            "primary": {
                task: {"metric": metric, "best": best}
                for task, (metric, best) in self.primary.items()
            },
            "scores": {
                model: {task: _as_dict(result, outcomes) for task, result in row.items()}
                for model, row in self.scores.items()
            },
            "cached": self.cached,
            "seconds": round(self.seconds, 3),
            "provenance": _finite(self.provenance),
        }


def _as_dict(result: Result, outcomes: bool) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"failed": {"kind": result.kind, "message": result.message}}
    found: dict[str, Any] = {
        "metrics": _finite(result.metrics),
        "examples": result.examples,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }
    if outcomes:
        found["outcomes"] = _finite(result.outcomes)
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
