"""Guided against uniform: for every cell one recipe, one merge, one score of its tasks."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.lab._contenders import contenders
from benchmarks.lab._family import Family, LabTask, Models, State
from benchmarks.lab._guides_arms import ALONE, METHODS, OWN, TOGETHER, UNIFORM, Arm
from benchmarks.lab._guides_evidence import BASE, Shelf
from benchmarks.lab._guides_measured import MEASURED, LayerMap, by_rank, sensitivities
from benchmarks.lab._guides_recipe import Densities, densities_of, merged, written
from benchmarks.lab._journal import Journal, code_mark, scoring_mark, task_mark, weights_mark
from benchmarks.lab._progress import Progress
from mergewise.errors import InterruptedMergeError, MergewiseError
from mergewise.guides import get_guide, guide
from mergewise.guides._ask import settings_of
from mergewise.guides._densities import hold_mean
from mergewise.methods import Settings, get_method

if TYPE_CHECKING:
    from rich.console import Console

Scores = dict[str, dict[str, float]]
METRICS = {"image_classification": ("accuracy", "nll"), "text_classification": ("accuracy", "nll")}
"""What is taken of an evaluator's metrics; of others, what the lab compares by."""
LOSSES = ("nll", "loss")
EVEN = Arm("", {"importance": "delta"})
"""An arm that names the guided tensors."""
CLOSE = 1e-5
"""Largest difference of two means of densities that counts as none."""


@dataclass(frozen=True)
class Cell:
    """One merge.

    Attributes:
        experts: that are merged; one, or all.
        arm: None for uniform density.
        calibration: "" for uniform density.
    """

    seed: int
    experts: tuple[str, ...]
    method: str
    density: float
    arm: str = UNIFORM
    calibration: str = ""

    @property
    def set(self) -> str:
        """Whether one expert is merged or all are."""
        return _set(self.experts)


def _set(experts: Sequence[str]) -> str:
    return ALONE if len(experts) == 1 else TOGETHER


@dataclass
class Outcome:
    """What became of a cell.

    Attributes:
        scores: by task, then metric; empty if it failed.
        mean: of the densities over the elements of guided tensors, the worst of its experts.
    """

    cell: Cell
    scores: Scores = field(default_factory=dict)
    mean: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Choice:
    """What is tried of everything there is."""

    arms: Sequence[Arm]
    densities: Sequence[float]
    methods: Sequence[str]
    sets: Sequence[str]


@dataclass
class Found:
    """Everything that was measured of a family.

    Attributes:
        references: by seed, then ``base`` and ``expert``.
        maps: densities and sensitivities by tensor, of experts alone.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    references: dict[int, dict[str, Scores]] = field(default_factory=dict)
    maps: list[LayerMap] = field(default_factory=list)


def run_guides(family: Family, seeds: Sequence[int], choice: Choice, console: Console) -> Found:
    """Every cell of a family; scores of the same weights are taken from the journal.

    Raises:
        MergewiseError: if the data or a model cannot be used. A cell that fails says why.
    """
    journal = Journal(family.folder / "guides.jsonl")
    found = Found()
    for seed in seeds:
        models = family.train(seed, console)
        trial = Trial(family, seed, models, choice, journal)
        with Progress(console, f"{family.name} seed {seed}: cells", trial.count()) as progress:
            found.references[seed] = trial.references()
            found.outcomes += list(trial.everything(progress))
            found.maps += trial.maps
    return found


class Trial:
    """All cells of one seed."""

    def __init__(
        self, family: Family, seed: int, models: Models, choice: Choice, journal: Journal
    ) -> None:
        self.family, self.seed, self.models, self.choice = family, seed, models, choice
        self.journal = journal
        self.shelf = Shelf(family, seed, models)
        self.tasks = [task for task in family.tasks(seed) if task.expert]
        self.marks = {task.name: task_mark(task.evaluator)[0] for task in self.tasks}
        self.weights = weights_mark([models.base, *models.experts.values()])
        self.sizes = {name: tensor.numel() for name, tensor in models.base.items()}
        self.middle = sorted(choice.densities)[len(choice.densities) // 2]
        self.maps: list[LayerMap] = []
        self._sensitive: dict[str, dict[str, float]] = {}
        self.lambdas = _lambdas(len(models.experts))

    def groups(self) -> list[tuple[str, ...]]:
        """The sets of experts that are merged."""
        names = list(self.models.experts)
        alone = [(name,) for name in names] if ALONE in self.choice.sets else []
        return [*alone, *([tuple(names)] if TOGETHER in self.choice.sets else [])]

    def count(self) -> int:
        """How many cells there are."""
        return len(self.choice.densities) * sum(
            1 + sum(len(arm.on(_set(experts))) for arm in self.choice.arms if arm.fits(method))
            for experts in self.groups()
            for method in self.choice.methods
        )

    def everything(self, progress: Progress) -> Iterator[Outcome]:
        """Cell by cell; yields as they are done."""
        for experts in self.groups():
            for density in self.choice.densities:
                even = self._guided(experts, density, EVEN, OWN)
                uniform = [dict.fromkeys(one, density) for one in even]
                for method in self.choice.methods:
                    cell = Cell(self.seed, experts, method, density)
                    yield self._outcome(cell, uniform, None, progress)
                for arm in self.choice.arms:
                    for calibration in arm.on(_set(experts)):
                        yield from self._arm(
                            experts, density, arm, calibration, uniform, progress
                        )  # fmt: skip

    def references(self) -> dict[str, Scores]:
        """Scores of the base on every task, and of each expert on its own, by task."""
        everyone = Cell(self.seed, tuple(self.models.experts), "", 1.0)
        own: Scores = {}
        for name, state in self.models.experts.items():
            own |= self._scores(state, Cell(self.seed, (name,), "", 1.0))[0]
        return {"base": self._scores(self.models.base, everyone)[0], "expert": own}

    def _arm(
        self, experts: tuple[str, ...], density: float, arm: Arm, calibration: str,
        uniform: Densities, progress: Progress,
    ) -> Iterator[Outcome]:  # fmt: skip
        """One arm with every method: the densities do not depend on the method."""
        failure, values = "", uniform
        if not arm.parameters:
            try:
                values = self._values(experts, density, arm, calibration, uniform)
                self._check(values, uniform, density)
                self._keep(experts, density, arm.name, calibration, values)
            except InterruptedMergeError:
                raise KeyboardInterrupt from None
            except MergewiseError as error:
                failure = self._why(error)
        for method in self.choice.methods:
            if not arm.fits(method):
                continue
            cell = Cell(self.seed, experts, method, density, arm.name, calibration)
            if failure:
                progress.step(arm.name)
                yield Outcome(cell, failure=failure)
            else:
                yield self._outcome(cell, values, arm, progress)

    # densities

    def _values(
        self, experts: tuple[str, ...], density: float, arm: Arm, calibration: str,
        uniform: Densities,
    ) -> Densities:  # fmt: skip
        if arm.guide:
            return self._guided(experts, density, arm, calibration)
        return [
            by_rank(self._sensitivities(name, one), self.sizes, density)
            for name, one in zip(experts, uniform, strict=True)
        ]

    def _sensitivities(self, expert: str, named: Mapping[str, float]) -> dict[str, float]:
        """Of an expert's guided tensors; measured once."""

        def loss(densities: Mapping[str, float]) -> float:
            cell = Cell(self.seed, (expert,), "ties", 1.0)
            document = self._document(cell, [dict(densities)], None)
            scores, _ = self._of_recipe(document, cell, "validation")
            return next(s[m] for s in scores.values() for m in LOSSES if m in s)

        if expert not in self._sensitive:
            self._sensitive[expert] = sensitivities(list(named), self.sizes, loss)
        return self._sensitive[expert]

    def _keep(
        self, experts: tuple[str, ...], density: float, arm: str, calibration: str,
        values: Densities,
    ) -> None:  # fmt: skip
        """For pictures of layers: of one expert alone, at the middle density."""
        if len(experts) == 1 and density == self.middle:
            found = self._sensitive[experts[0]] if arm == MEASURED else values[0]
            self.maps.append(LayerMap(self.seed, experts[0], arm, calibration, found))

    def _guided(
        self, experts: tuple[str, ...], density: float, arm: Arm, calibration: str
    ) -> Densities:
        chosen = get_guide(arm.guide)
        settings = {**arm.settings, "mean_density": density}
        needs = chosen.needs(settings_of(chosen, settings))
        evidence: dict[str, Any] = {
            self._path(name): self.shelf.of(name, calibration, needs.experts, needs.options)
            for name in experts
        }
        if needs.base:
            evidence[self._path(BASE)] = [
                one
                for name in experts
                for one in self.shelf.base(name, calibration, needs.base, needs.options)
            ]
        made = guide(self._recipe(experts, "ties"), arm.guide, evidence, **settings)
        found = densities_of(made.recipe)
        return [self._changed(one, arm.change, density) for one in found]

    def _changed(self, found: dict[str, float], change: str, density: float) -> dict[str, float]:
        if not change:
            return found
        if change == "reversed":
            moved = {name: 2 * density - value for name, value in found.items()}
        else:
            values = list(found.values())
            random.Random(self.seed).shuffle(values)
            moved = dict(zip(found, values, strict=True))
        sizes = [float(self.sizes[name]) for name in found]
        one, all_sizes = dict(enumerate(moved.values())), dict(enumerate(sizes))
        held = hold_mean({"": one}, {"": all_sizes}, density)[""]
        return dict(zip(found, held.values(), strict=True))

    def _check(self, values: Densities, uniform: Densities, density: float) -> None:
        """The same tensors and the same mean, or the comparison would not be one."""
        for one, other in zip(values, uniform, strict=True):
            if odd := one.keys() ^ other.keys():
                raise MergewiseError(
                    f"the guide and uniform density differ in {len(odd)} tensors: {sorted(odd)[:3]}"
                )
            if abs(self._mean(one) - density) > CLOSE:
                raise MergewiseError(
                    f"the mean density is {self._mean(one):.6f}, not {density:g}: its own range "
                    "does not allow for it"
                )

    def _mean(self, densities: Mapping[str, float]) -> float:
        whole = sum(self.sizes[name] for name in densities)
        return sum(self.sizes[n] * value for n, value in densities.items()) / whole

    def _why(self, error: MergewiseError) -> str:
        """An error, without this machine's folders or the expert's name."""
        text = str(error).replace(str(self.family.folder.resolve()), "").replace("\n", " ")
        return f"{type(error).__name__}: {re.sub('/seed[^ ]*', 'FILE', text)}"

    # merging and scoring

    def _outcome(
        self, cell: Cell, values: Densities, arm: Arm | None, progress: Progress
    ) -> Outcome:
        mean = max((self._mean(one) for one in values), key=lambda m: abs(m - cell.density))
        try:
            scores, free = self._of_recipe(self._document(cell, values, arm), cell)
            found = Outcome(cell, scores, mean)
        except MergewiseError as error:
            found, free = Outcome(cell, mean=mean, failure=self._why(error)), True
        progress.step(f"{cell.arm} {cell.method}", free=free)
        return found

    def _of_recipe(
        self, document: dict[str, Any], cell: Cell, split: str = "test"
    ) -> tuple[Scores, bool]:
        """Scores of what a recipe makes, and whether they were known."""
        home = str(self.family.folder.resolve())
        asked = {
            "recipe": json.dumps(document, sort_keys=True).replace(home, ""),
            "weights": self.weights,
            "tasks": self.marks,
            "code": code_mark(cell.method),
            **_said(split),
        }
        known = self.journal.get(asked)
        if known is None:
            found, free = self._scores(merged(document), cell, split)
            self.journal.put(asked, found)
            return found, free
        return known, True

    def _document(self, cell: Cell, values: Densities, arm: Arm | None) -> dict[str, Any]:
        """The recipe of a cell."""
        document = self._recipe(cell.experts, cell.method)
        document["parameters"] = dict(METHODS[cell.method])
        if cell.set == TOGETHER and cell.method in self.lambdas:
            document["parameters"]["lambda"] = self.lambdas[cell.method]
        for model, densities in zip(document["models"], values, strict=True):
            model["parameters"] |= written(cell.method, densities)
        if arm is not None and arm.parameters:
            self._score_elements(document, cell, arm)
        return document

    def _score_elements(self, document: dict[str, Any], cell: Cell, arm: Arm) -> None:
        document["parameters"] |= dict(arm.parameters)
        method = get_method(cell.method)
        values = {n: arm.parameters.get(n, p.default) for n, p in method.params.items()}
        names = [need.statistic for need in method.needs(Settings(values))]
        for name, model in zip(cell.experts, document["models"], strict=True):
            files = self.shelf.of(name, cell.calibration, names)
            model["evidence"] = [str(one.path) for one in files]

    def _recipe(self, experts: Sequence[str], method: str) -> dict[str, Any]:
        models = [{"model": self._path(n), "parameters": {"weight": 1.0}} for n in experts]
        return {
            "merge_method": method,
            "base_model": self._path(BASE),
            "models": models,
            "seed": self.seed,
        }

    def _path(self, name: str) -> str:
        return str(self.family.checkpoint(self.seed, name).resolve())

    def _scores(self, state: State, cell: Cell, split: str = "test") -> tuple[Scores, bool]:
        """The scores of the tasks of the experts in a cell, and whether all were known."""
        weights, free = weights_mark([state]), True
        found: Scores = {}
        for task in self.tasks:
            if task.owner not in cell.experts:
                continue
            asked = {"weights": weights, "task": self.marks[task.name], "code": scoring_mark(),
                     "metrics": _metrics(task), **_said(split)}  # fmt: skip
            known = self.journal.get(asked)
            if known is None:
                known, free = self._score(state, task, split), False
                self.journal.put(asked, known)
            found[task.name] = known
        return found, free

    def _score(self, state: State, task: LabTask, split: str) -> dict[str, float]:
        measured = task.evaluator.score(self.family.live(state, "merged"), split).metrics
        return {name: float(measured[name]) for name in _metrics(task)}


def _said(split: str) -> dict[str, str]:
    return {} if split == "test" else {"split": split}


def _metrics(task: LabTask) -> list[str]:
    return list(METRICS.get(task.evaluator.name, (task.metric,)))


def _lambdas(experts: int) -> dict[str, float]:
    """The factor on many task vectors, by method, as in the lab's other tables."""
    chosen, _ = contenders(experts, 0)
    return {c.method: float(c.default or 1.0) for c in chosen if c.scale == "lambda"}
