"""What a family of experts gives to the lab: tasks, trained models, and a way to run weights."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.evidence.evaluators._base import Evaluator
from mergewise.evidence.models._live import LiveModel

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from benchmarks.lab._evidence import Calibration

Size = Literal["fast", "cpu", "gpu"]
SIZES: tuple[Size, ...] = ("fast", "cpu", "gpu")
State = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class LabTask:
    """One column of the table.

    Attributes:
        name: also the name of its expert, if there is one and `of` does not name it.
        evaluator: with splits ``validation`` (coefficients are tuned on it) and ``test``.
        expert: False for a held-out target that no expert was trained for.
        of: the expert, where one expert has several tasks (maths: loss and exact match).
    """

    name: str
    evaluator: Evaluator
    expert: bool = True
    of: str = ""

    @property
    def owner(self) -> str | None:
        """The key in `Models.experts` of the expert trained for this task, None if none was."""
        return (self.of or self.name) if self.expert else None

    @property
    def metric(self) -> str:
        """The metric the lab compares by."""
        return self.evaluator.primary

    @property
    def best(self) -> Literal["max", "min"]:
        """Whether more or less of it is better."""
        return self.evaluator.metrics[self.metric].best


@dataclass(frozen=True)
class Models:
    """The models of one seed: state dicts with the same names, on the CPU.

    Attributes:
        base: what the experts started from.
        experts: by the name of their task.
        joint: one model trained on all tasks at once, None if the family has none.
    """

    base: State
    experts: Mapping[str, State]
    joint: State | None = None


@dataclass(frozen=True)
class Gate:
    """A condition under which the family's numbers mean something.

    Attributes:
        text: the condition, with the numbers expected and found.
        holds: whether it is met.
    """

    text: str
    holds: bool


class Family(ABC):
    """Tasks and trained models of one kind; a file of `benchmarks.lab` each.

    Class attributes:
        name: on the command line.
        title: one line for headings.
        code: raised when training, with the same settings, would give other weights.
        threads: of torch; None for one a processor.
        calibrating: examples of each expert's data that methods with evidence read; 0 if the
            family has no `calibration`.
        optimised: whether it has `moments`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    code: ClassVar[int] = 1
    threads: ClassVar[int | None] = None
    calibrating: ClassVar[int] = 0
    optimised: ClassVar[bool] = False

    def __init__(self, data: Path | None, folder: Path, size: Size, device: str) -> None:
        """Look at the data; train nothing yet.

        Args:
            data: a folder in the format of the shared data, None for what the family has itself.
            folder: where models are kept; only this family writes there.
            size: ``fast`` for tests (seconds), ``cpu`` for two cores, ``gpu``.
            device: where training and scoring run: ``cpu`` or ``cuda``.

        Raises:
            DataError: if the data are absent or cannot be used.
        """
        self.data, self.folder, self.size, self.device = data, folder, size, device

    @property
    @abstractmethod
    def seeds(self) -> int:
        """How many seeds a run of this size takes unless told otherwise."""

    @property
    @abstractmethod
    def budget(self) -> float:
        """Minutes a whole run of this size may take on the hardware it is meant for."""

    @abstractmethod
    def tasks(self, seed: int) -> list[LabTask]:
        """The columns of the table, the same names for every seed."""

    @abstractmethod
    def train(self, seed: int, console: Console) -> Models:
        """The models of a seed, each read from ``self.home(seed)`` if it lies there already.

        Models that were trained under another `fingerprint` are trained anew.
        """

    @abstractmethod
    def live(self, state: State, name: str) -> LiveModel:
        """A model that runs with these weights; the next call may reuse its module."""

    def calibration(
        self, seed: int, expert: str, state: State, examples: int
    ) -> Calibration | None:
        """An expert and unlabelled examples of its training data, for methods that read evidence.

        Returns:
            None if the family has none; such methods are then left out.
        """
        return None

    def examples(self, seed: int, expert: str, state: State, count: int) -> Calibration | None:
        """As `calibration`, but nothing of what experts are trained on besides their own data."""
        return self.calibration(seed, expert, state, count)

    def steps(self, expert: str) -> int | None:
        """How many updates an expert was trained for, None if that is not known."""
        return None

    def moments(self, seed: int, expert: str) -> dict[str, Tensor]:
        """Adam's second moments at the end of an expert's training, divided by 1 - beta2^steps.

        Raises:
            EvidenceError: if they cannot be had for the expert as it lies there.
        """
        raise NotImplementedError

    def checkpoint(self, seed: int, name: str) -> Path:
        """Where a trained model of a seed lies: ``base``, or an expert's."""
        return self.home(seed) / f"{name}.safetensors"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides the models, as JSON: sizes, rates, hashes of the data."""

    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        return []

    def gates(self, means: Mapping[str, float]) -> list[Gate]:
        """Conditions on mean scores without which the comparison is meaningless.

        Args:
            means: mean test score over the experts' tasks, of ``pretrained``, ``fine-tuned``,
                ``joint`` and every contender at its default, averaged over seeds.
        """
        return []

    def home(self, seed: int) -> Path:
        """The folder of a seed's models."""
        return self.folder / f"seed{seed}"

    def fingerprint(self, seed: int) -> str:
        """Identifies the trained models: 64 hexadecimal digits."""
        what = {"family": self.name, "code": self.code, "seed": seed, "settings": self.settings()}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
