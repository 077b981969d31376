"""The interface of an evaluator: a model and a split in, metrics out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.errors import TaskError
from mergewise.evidence._data import Data
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Metric:
    """One number an evaluator returns.

    Attributes:
        best: whether more (`max`) or less (`min`) is better.
        help: one line, with the unit.
    """

    best: Literal["max", "min"]
    help: str


@dataclass(frozen=True)
class Score:
    """What one model reached on one split of one task.

    Attributes:
        metrics: by name.
        outcomes: one value an example, in the data's order, for comparisons between models:
            ``correct`` (0 or 1), ``prediction`` (a class, or a text), ``loss``. Empty where an
            evaluator has none.
        examples: how many were scored.
        seconds: wall time.
        notes: what a reader of the numbers must know, such as truncated examples.
    """

    metrics: Mapping[str, float]
    outcomes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    examples: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a model has no score on a task.

    Attributes:
        kind: the error's class.
        message: its first line.
        traceback: where it came from, for -vv.
    """

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Task:
    """One entry of a tasks file.

    Attributes:
        name: unique in the file.
        data: by split; an evaluator that has data of its own needs none.
        options: the evaluator's parameters, checked and complete.
        head: the task's own classification head, a safetensors file.
    """

    name: str
    data: Mapping[str, Data]
    options: Settings
    head: Path | None = None

    def split(self, name: str) -> Data:
        """The data of a split.

        Raises:
            TaskError: if the task has none.
        """
        if name not in self.data:
            have = ", ".join(self.data) or "none"
            raise TaskError(f"task {self.name}: no split {name!r}; it has {have}")
        return self.data[name]


class Evaluator(ABC):
    """A kind of task. Subclass it in a file of `mergewise.evidence.evaluators`: registered.

    Class attributes:
        name: the ``kind`` in tasks files.
        summary: one line.
        params: options besides name, kind, data and head.
        metrics: what it returns; the first is the primary one, by which models are compared.
        example: an entry of a tasks file, YAML.
        version: raised when the same input would give other numbers; part of the cache's key.
        fields: record fields it reads, in words, for the help page.
        paths: names of options that are paths, relative to the tasks file.
        needs_data: whether a task must say where its data is.

    Attributes:
        progress: call it with (done, total) while scoring, in whatever unit.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    params: ClassVar[Mapping[str, Param]] = {}
    metrics: Mapping[str, Metric]  # of an instance, where options decide
    example: ClassVar[str] = ""
    version: ClassVar[int] = 1
    fields: ClassVar[str] = ""
    paths: ClassVar[tuple[str, ...]] = ()
    needs_data: ClassVar[bool] = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self.progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def primary(self) -> str:
        """The metric by which models are compared."""
        return next(iter(self.metrics))

    def role(self) -> Role | None:
        """What the checkpoint is loaded as; None if the evaluator takes the path itself."""
        return "causal_lm"

    def check(self) -> None:
        """Find what can be found wrong before any model is loaded.

        Raises:
            TaskError: for options that do not go together, or data that lacks a field.
        """

    def check_model(self, name: str, sizes: Collection[int]) -> None:
        """Find from a checkpoint's headers that it cannot do the task.

        Args:
            name: what reports call it.
            sizes: every size of a dimension that occurs in its tensors.

        Raises:
            TaskError: if it cannot.
        """

    def mark(self) -> str | None:
        """What decides the numbers besides options, data and head; None: never cache them."""
        return ""

    @abstractmethod
    def score(self, model: LiveModel, split: str) -> Score:
        """Run `model` over a split of the task's data.

        Raises:
            TaskError: if this model cannot do the task.
            DataError: if the data cannot be read.
        """
