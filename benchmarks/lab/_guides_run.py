"""Guided against uniform: for every cell one recipe, one merge, one score of its tasks."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._contenders import contenders
from benchmarks.lab._family import Family, LabTask, Models, State
from benchmarks.lab._guides_arms import ALONE, METHODS, TOGETHER, UNIFORM, Arm
from benchmarks.lab._guides_evidence import BASE, Shelf
from benchmarks.lab._journal import Journal, code_mark, scoring_mark, task_mark, weights_mark
from benchmarks.lab._progress import Progress
from mergewise.engine import merge
from mergewise.errors import InterruptedMergeError, MergewiseError
from mergewise.guides import get_guide, guide
from mergewise.guides._ask import settings_of
from mergewise.guides._densities import hold_mean
from mergewise.methods import Settings, get_method
from mergewise.plan import build_plan

if TYPE_CHECKING:
    from rich.console import Console

Scores = dict[str, dict[str, float]]
Densities = list[dict[str, float]]
"""For each expert, the density of every guided tensor."""
METRICS = {"image_classification": ("accuracy", "nll"), "text_classification": ("accuracy", "nll")}
"""What is taken of an evaluator's metrics; of others, what the lab compares by."""
CLOSE = 1e-5
"""Largest difference of two means of densities that counts as none."""
_SPACE = 0.9
"""Share of the room below and above a density that DELLA's epsilon may take."""


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
    """

    outcomes: list[Outcome] = field(default_factory=list)
    references: dict[int, dict[str, Scores]] = field(default_factory=dict)


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
                even = self._guided(experts, density, self._even(), "own")
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

    def _even(self) -> Arm:
        """Any arm that names the guided tensors."""
        return Arm("", {"importance": "delta"})

    def _arm(
        self, experts: tuple[str, ...], density: float, arm: Arm, calibration: str,
        uniform: Densities, progress: Progress,
    ) -> Iterator[Outcome]:  # fmt: skip
        """One arm with every method: the densities do not depend on the method."""
        failure, values = "", uniform
        if arm.guide:
            try:
                values = self._guided(experts, density, arm, calibration)
                self._check(values, uniform, density)
            except InterruptedMergeError:
                raise KeyboardInterrupt from None
            except MergewiseError as error:
                failure = f"{type(error).__name__}: {error}"
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

    def _guided(
        self, experts: tuple[str, ...], density: float, arm: Arm, calibration: str
    ) -> Densities:
        chosen = get_guide(arm.guide)
        settings = {**arm.settings, "mean_density": density}
        needs = chosen.needs(settings_of(chosen, settings))
        evidence: dict[str, Any] = {
            self._path(name): self.shelf.of(name, calibration, needs.experts) for name in experts
        }
        if needs.base:
            evidence[self._path(BASE)] = [
                one for name in experts for one in self.shelf.base(name, calibration, needs.base)
            ]
        made = guide(self._recipe(experts, "ties"), arm.guide, evidence, **settings)
        found = _densities(made.recipe)
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
        sizes = {name: float(self.models.base[name].numel()) for name in found}
        one, all_sizes = dict(enumerate(moved.values())), dict(enumerate(sizes.values()))
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
        sizes = {name: self.models.base[name].numel() for name in densities}
        return sum(sizes[n] * value for n, value in densities.items()) / sum(sizes.values())

    # merging and scoring

    def _outcome(
        self, cell: Cell, values: Densities, arm: Arm | None, progress: Progress
    ) -> Outcome:
        mean = max((self._mean(one) for one in values), key=lambda m: abs(m - cell.density))
        try:
            scores, free = self._of_recipe(self._document(cell, values, arm), cell)
            found = Outcome(cell, scores, mean)
        except MergewiseError as error:
            found, free = Outcome(cell, mean=mean, failure=f"{type(error).__name__}: {error}"), True
        progress.step(f"{cell.arm} {cell.method}", free=free)
        return found

    def _of_recipe(self, document: dict[str, Any], cell: Cell) -> tuple[Scores, bool]:
        """Scores of what a recipe makes, and whether they were known."""
        home = str(self.family.folder.resolve())
        asked = {
            "recipe": json.dumps(document, sort_keys=True).replace(home, ""),
            "weights": self.weights,
            "tasks": self.marks,
            "code": code_mark(cell.method),
        }
        known = self.journal.get(asked)
        if known is None:
            found, free = self._scores(_merged(document), cell)
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
            model["parameters"] |= _written(cell.method, densities)
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

    def _scores(self, state: State, cell: Cell) -> tuple[Scores, bool]:
        """The scores of the tasks of the experts in a cell, and whether all were known."""
        weights, free = weights_mark([state]), True
        found: Scores = {}
        for task in self.tasks:
            if task.owner not in cell.experts:
                continue
            asked = {"weights": weights, "task": self.marks[task.name], "code": scoring_mark(),
                     "metrics": _metrics(task)}  # fmt: skip
            known = self.journal.get(asked)
            if known is None:
                known, free = self._score(state, task), False
                self.journal.put(asked, known)
            found[task.name] = known
        return found, free

    def _score(self, state: State, task: LabTask) -> dict[str, float]:
        measured = task.evaluator.score(self.family.live(state, "merged"), "test").metrics
        return {name: float(measured[name]) for name in _metrics(task)}


def _merged(document: dict[str, Any]) -> State:
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="lab-guides-") as folder:
        try:
            made = merge(document, Path(folder) / "out", device="cpu", workers=1)
        except InterruptedMergeError:
            raise KeyboardInterrupt from None
        return load_file(made.out / made.files[0])


def _metrics(task: LabTask) -> list[str]:
    return list(METRICS.get(task.evaluator.name, (task.metric,)))


def _lambdas(experts: int) -> dict[str, float]:
    """The factor on many task vectors, by method, as in the lab's other tables."""
    chosen, _ = contenders(experts, 0)
    return {c.method: float(c.default or 1.0) for c in chosen if c.scale == "lambda"}


def _densities(recipe: Any) -> Densities:
    """What an explicit recipe says of each expert's tensors, leaving out those of no guide."""
    tensors = build_plan(recipe).output.tensors
    return [
        {name: float(t.values["density"][i]) for name, t in tensors.items() if name in named}
        for i, named in enumerate(_named(recipe))
    ]


def _named(recipe: Any) -> list[set[str]]:
    """The tensors for which a recipe names a density, by expert."""
    import yaml

    [document] = list(yaml.safe_load_all(recipe.text))
    return [
        {rule["filter"] for rule in model["parameters"]["density"] if "filter" in rule}
        for model in document["models"]
    ]


def _written(method: str, densities: Mapping[str, float]) -> dict[str, Any]:
    """Density as a recipe says it, everything that is not guided at 1.

    DELLA's epsilon has to leave every probability between 0 and 1: it is narrower where a density
    is near either, in both arms alike.
    """
    names = sorted(densities, key=lambda name: -len(name))  # the first filter that fits counts
    found: dict[str, Any] = {
        "density": [*({"filter": n, "value": densities[n]} for n in names), {"value": 1.0}]
    }
    if method == "della":
        usual = get_method(method).params["epsilon"].default
        room = {n: _SPACE * min(d, 1 - d) for n, d in densities.items()}
        rules = [{"filter": n, "value": min(usual, room[n])} for n in names]
        found["epsilon"] = [*rules, {"value": usual}]
    return found
