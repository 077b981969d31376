"""What the vision and the text family share: one body, a frozen head a task, experts of the body.

Only bodies are merged. A head is fixed before the first expert is trained, so that every expert's
body answers to the same heads as the base, and one body can be scored on every task. That is how
experts of CLIP are made (Ilharco et al. 2022, arXiv 2212.04089).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab._evidence import Calibration, Inputs, headed
from benchmarks.lab._family import Family, Gate, LabTask, Models, State
from benchmarks.lab._progress import clock
from benchmarks.lab._train import Schedule, kept_state, shuffled, train
from mergewise._lazy import torch
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators import Task, get_evaluator
from mergewise.evidence.evaluators._heads import Head, save_head
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

Part = tuple["LabSet", "Tensor"]
"""A set and the rows of it that are in a batch."""
ROOM = 0.05
"""Least difference between experts and their average at which methods can differ."""
BASE = "base"
_TIMED = 3


@dataclass(frozen=True)
class LabSet:
    """One task's examples, split for one seed.

    Attributes:
        names: of the classes.
        inputs: of training, in whatever form the family wants them.
        labels: of training, int64 [n].
        validation: records for the evaluator; never trained on.
        test: likewise, from the set's own test part.
    """

    name: str
    names: tuple[str, ...]
    inputs: Any
    labels: Tensor
    validation: Sequence[dict[str, Any]]
    test: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """How much of everything, for one size.

    Attributes:
        training: examples of a task, at most; likewise `validation` and `test`.
        batch: examples a step of an expert.
        joint_batch: examples a step of joint training (and of the base), over all tasks.
    """

    training: int
    validation: int
    test: int
    batch: int
    joint_batch: int
    expert: Schedule
    joint: Schedule
    seeds: int
    budget: float


class Classified(Family):
    """A family of classifiers with a shared body.

    Class attributes:
        kind: the evaluator.

    Attributes:
        plan: how much of everything.
        tokenizer: of families of text.
    """

    kind: ClassVar[str]
    plan: Plan
    tokenizer: Any = None
    calibrating: ClassVar[int] = 256
    _split: tuple[int, list[LabSet]] | None = None
    _module: nn.Module | None = None

    @property
    def seeds(self) -> int:
        return self.plan.seeds

    @property
    def budget(self) -> float:
        return self.plan.budget

    @abstractmethod
    def split(self, seed: int) -> list[LabSet]:
        """Every task in a fixed order; those with an expert first."""

    @abstractmethod
    def heads(self, seed: int) -> list[Head]:
        """One for each set, the same on every call; may need the base, and train it."""

    @abstractmethod
    def new_module(self, seed: int) -> nn.Module:
        """A body on the family's device, its weights as before any training."""

    @abstractmethod
    def inputs(self, found: LabSet, rows: Tensor) -> dict[str, Tensor]:
        """A batch of training examples, as keyword arguments of the body."""

    @abstractmethod
    def pooled(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Features [examples, width] of such a batch."""

    @abstractmethod
    def features(self, module: nn.Module, parts: Sequence[Part]) -> Tensor:
        """Features [examples, width] of examples of several sets, run together."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The evaluator's."""

    @property
    @abstractmethod
    def experts(self) -> int:
        """How many of the sets have an expert."""

    def sets(self, seed: int) -> list[LabSet]:
        """`split`, kept for the seed at hand."""
        if self._split is None or self._split[0] != seed:
            self._split = seed, self.split(seed)
        return self._split[1]

    def base(self, seed: int, console: Console) -> State:
        """What experts start from: the module as it is, unless the family trains it."""
        return self.new_module(seed).state_dict()

    def rows(self, found: LabSet, size: int, seed: int) -> Iterator[Tensor]:
        """Endless batches of rows of one set's training examples."""
        return shuffled(len(found.labels), size, seed)

    def tasks(self, seed: int) -> list[LabTask]:
        tasks = []
        for i, (found, head) in enumerate(zip(self.sets(seed), self.heads(seed), strict=True)):
            path = self.home(seed) / f"head_{found.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_head(
                path, head.weight, head.bias, normalise=head.normalise, scale=head.scale
            )  # fmt: skip
            data = {"validation": Data(found.validation), "test": Data(found.test)}
            task = Task(found.name, data, Settings(self.options()), path)
            tasks.append(LabTask(found.name, get_evaluator(self.kind)(task), i < self.experts))
        return tasks

    def train(self, seed: int, console: Console) -> Models:
        base = self.kept_base(seed, console)
        sets, heads = self.sets(seed)[: self.experts], self.heads(seed)[: self.experts]
        pairs = list(zip(sets, heads, strict=True))
        self._estimate(pairs, seed, console)
        tuned = partial(self._tuned, base, seed=seed, console=console)
        experts = {
            found.name: self.kept(
                seed,
                f"expert_{found.name}",
                partial(tuned, [(found, head)], self.plan.batch, self.plan.expert, found.name),
            )
            for found, head in pairs
        }
        joint = partial(tuned, pairs, self.plan.joint_batch, self.plan.joint, "joint")
        return Models(base, experts, self.kept(seed, "joint", joint))

    def kept_base(self, seed: int, console: Console) -> State:
        """The base, made where it does not lie there yet."""
        return self.kept(seed, BASE, lambda: dict(self.base(seed, console)))

    def kept(self, seed: int, name: str, make: Callable[[], dict[str, Tensor]]) -> State:
        """The tensors of one file in the seed's folder, made where they must be."""
        return kept_state(self.home(seed) / f"{name}.safetensors", self.fingerprint(seed), make)

    def steps(self, expert: str) -> int:
        return self.plan.expert.steps

    def checkpoint(self, seed: int, name: str) -> Path:
        return super().checkpoint(seed, name if name == BASE else f"expert_{name}")

    def calibration(self, seed: int, expert: str, state: State, examples: int) -> Calibration:
        index = [found.name for found in self.sets(seed)].index(expert)
        found, head = self.sets(seed)[index], self.heads(seed)[index]
        module = self.new_module(seed)
        module.load_state_dict(dict(state))
        rows = next(shuffled(len(found.labels), min(examples, len(found.labels)), seed))
        batches = [self.inputs(found, part) for part in rows.split(self.plan.batch)]
        return Calibration(LiveModel(expert, headed(module, head, self.pooled)), batches, "body.")

    def gates(self, means: Mapping[str, float]) -> list[Gate]:
        tuned, average = means.get("fine-tuned"), means.get("linear")
        if tuned is None or average is None:
            return []
        text = f"fine-tuned is {ROOM * 100:g} points or more above the average"
        return [Gate(f"{text}: {tuned:.1%} - {average:.1%}", tuned - average >= ROOM)]

    def live(self, state: State, name: str) -> LiveModel:
        module = self._scratch()
        module.load_state_dict(dict(state))
        return LiveModel(name, module, tokenizer=self.tokenizer)

    def fit(
        self,
        module: nn.Module,
        pairs: Sequence[tuple[LabSet, Head]],
        batch: int,
        schedule: Schedule,
        label: str,
        *,
        seed: int,
        console: Console,
    ) -> None:
        """Train a body on one task or several, the same number of examples of each in a batch."""
        train(
            module,
            self.batches([found for found, _ in pairs], batch, seed),
            partial(self._loss, [head for _, head in pairs]),
            schedule,
            label=f"{self.name} seed {seed}: {label}",
            console=console,
            bfloat16=self.device != "cpu",
        )

    def batches(self, sets: Sequence[LabSet], size: int, seed: int) -> Iterator[list[Part]]:
        """Endless batches of about `size` examples, as many of each set."""
        each = max(1, round(size / len(sets)))
        streams = [self.rows(found, each, 1000 * seed + i) for i, found in enumerate(sets)]
        while True:
            yield [(found, next(rows)) for found, rows in zip(sets, streams, strict=True)]

    def _tuned(
        self,
        base: State,
        pairs: Sequence[tuple[LabSet, Head]],
        batch: int,
        schedule: Schedule,
        label: str,
        *,
        seed: int,
        console: Console,
    ) -> dict[str, Tensor]:
        module = self.new_module(seed)
        module.load_state_dict(dict(base))
        torch.manual_seed(seed)  # dropout
        self.fit(module, pairs, batch, schedule, label, seed=seed, console=console)
        return module.state_dict()

    def _loss(self, heads: Sequence[Head], module: nn.Module, parts: Sequence[Part]) -> Tensor:
        features = self.features(module, parts).split([len(rows) for _, rows in parts])
        losses = [
            torch.nn.functional.cross_entropy(
                head.logits(mine), found.labels[rows].to(mine.device)
            )
            for head, mine, (found, rows) in zip(heads, features, parts, strict=True)
        ]  # fmt: skip
        return torch.stack(losses).mean()

    def _scratch(self) -> nn.Module:
        """One module for all models that are only scored."""
        if self._module is None:
            self._module = self.new_module(0).eval()
        return self._module

    def _estimate(
        self, pairs: Sequence[tuple[LabSet, Head]], seed: int, console: Console
    ) -> None:  # fmt: skip
        """Say how long training will take, from a few steps of each kind that is still to do."""
        home = self.home(seed)
        left = [p for p in pairs if not (home / f"expert_{p[0].name}.safetensors").is_file()]
        seconds = 0.0
        for pair in left:
            seconds += self.plan.expert.steps * self._step([pair], self.plan.batch, seed)
        if not (home / "joint.safetensors").is_file():
            seconds += self.plan.joint.steps * self._step(pairs, self.plan.joint_batch, seed)
        if seconds:
            console.print(
                f"{self.name}, seed {seed}: experts and joint model take about {clock(seconds)}",
                highlight=False,
            )

    def _step(self, pairs: Sequence[tuple[LabSet, Head]], batch: int, seed: int) -> float:
        """Seconds of one step; the first of a few, which is slower, does not count."""
        module, heads = self._scratch(), [head for _, head in pairs]
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
        source = self.batches([found for found, _ in pairs], batch, seed)
        taken = []
        for parts, _ in zip(source, range(_TIMED), strict=False):
            start = time.perf_counter()
            torch.autograd.backward(self._loss(heads, module, parts))
            optimizer.step()
            taken.append(time.perf_counter() - start)
        module.zero_grad()
        return sum(taken[1:]) / (_TIMED - 1)
