"""Every error a user can cause.

    MergewiseError
    ├── RecipeError              the document: file, line, column, and all problems found at once
    ├── UnknownMethodError       a method name the registry does not know
    ├── IncompatibleModelsError  inputs that cannot be merged with one another: tensor, shapes
    ├── CheckpointError          a file or folder that cannot be read as a checkpoint
    │   └── HubError             a model on the Hub that is absent, private or out of reach
    ├── NonFiniteError           NaN or infinity in an input or a result: tensor, model
    ├── OutputError              the output folder: exists, unwritable, no space, in use
    ├── DataError                a data set that cannot be read, or lacks a field: file, row
    ├── TaskError                a task that is misdescribed, or a model that cannot do it
    │   └── TasksFileError       the tasks file: line, column, and all problems found at once
    ├── EvidenceError            an evidence file that is broken, or does not fit what is asked
    ├── GuideError               a guide that is unknown, or told what it cannot do
    ├── TransformError           a transform that is unknown, or told what it cannot do
    ├── TrajectoryError          checkpoints of a run that cannot be found, ordered or weighted
    ├── InterruptedMergeError    stopped by the user; what is finished is kept
    ├── NotBuiltYetError         parsed and understood, but not available in this version
    └── MissingExtraError        an optional dependency is absent

A message says what was wrong, where, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class MergewiseError(Exception):
    """Base of all errors that mergewise raises on purpose."""


@dataclass(frozen=True)
class Diagnostic:
    """One problem in a recipe or a tasks file, at a place. Lines and columns count from 1."""

    path: str
    line: int
    column: int
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        kind = "" if self.severity == "error" else "warning: "
        return f"{self.path}:{self.line}:{self.column}: {kind}{self.message}"


class RecipeError(MergewiseError):
    """A recipe that cannot be run; carries every problem found, in document order."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class UnknownMethodError(MergewiseError):
    """A merge method that is not registered."""


class IncompatibleModelsError(MergewiseError):
    """Models whose tensors cannot be merged: missing tensors, other shapes, other layouts."""


class CheckpointError(MergewiseError):
    """A checkpoint that is absent, broken, hostile or in a format that is not read."""


class HubError(CheckpointError):
    """A model on the Hub that is absent, private, out of reach, or not what was announced."""


class NonFiniteError(MergewiseError):
    """NaN or infinity where a number was expected."""


class OutputError(MergewiseError):
    """The output cannot be written, or must not be."""


class DataError(MergewiseError):
    """Calibration or evaluation data that cannot be read or used."""


class TaskError(MergewiseError):
    """An evaluation task that is misdescribed, or a model that cannot do it."""


class TasksFileError(TaskError):
    """A tasks file that cannot be used; carries every problem found, in document order."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class EvidenceError(MergewiseError):
    """An evidence file that is broken, or statistics that cannot be collected or combined."""


class GuideError(MergewiseError):
    """A guide that is not registered, or settings and recipes that it cannot work with."""


class TransformError(MergewiseError):
    """A transform that is not registered, or settings and models that it cannot work with."""


class TrajectoryError(MergewiseError):
    """A run's checkpoints cannot be averaged as asked."""


class InterruptedMergeError(MergewiseError):
    """The user stopped a merge; finished shards are kept for the next run."""


class NotBuiltYetError(MergewiseError):
    """The request is valid, but this version of mergewise cannot do it yet."""


class MissingExtraError(MergewiseError):
    """An optional dependency is missing; the message gives the command that installs it."""

    def __init__(self, extra: str, package: str, wanted_for: str = "") -> None:
        why = f"{wanted_for}: " if wanted_for else ""
        super().__init__(f"{why}{package} is not installed; run: pip install 'mergewise[{extra}]'")
