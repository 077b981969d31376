"""Train a family, try every contender, and put the scores together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.lab._contenders import GRID, Contender, contenders
from benchmarks.lab._cost import Cost, measured
from benchmarks.lab._evidence import evidence_mark
from benchmarks.lab._family import Family, LabTask, Models, State
from benchmarks.lab._given import given_of, marks, merged, notes
from benchmarks.lab._journal import Journal, code_mark, task_mark, weights_mark
from benchmarks.lab._merge import merge
from benchmarks.lab._pairs import ALONE, pair_contenders, pairs_of
from benchmarks.lab._progress import Progress
from benchmarks.lab._results import (
    ELSEWHERE,
    JOINT,
    PRETRAINED,
    TUNED,
    Column,
    Measures,
    Results,
    Row,
    Run,
    normalised,
)
from benchmarks.lab._tune import choose
from mergewise.errors import MergewiseError

if TYPE_CHECKING:
    from rich.console import Console

Scores = Mapping[str, float]


def run_family(
    family: Family,
    seeds: Sequence[int],
    console: Console,
    grid: Sequence[float] = GRID,
    only: Sequence[str] = (),
    pairs_alone: bool = False,
) -> Results:
    """Everything of a family but the reports.

    Args:
        grid: values that a contender's scale is tried at.
        only: names of methods to try; empty for all.
        pairs_alone: merge pairs of experts, not all of them.

    Raises:
        MergewiseError: if the data or a model cannot be used. A contender that fails does not
            stop the run; its row says why.
    """
    old = any(family.home(seed).exists() for seed in seeds)
    for seed in seeds:  # first, so that the time left of what follows can be told
        models = family.train(seed, console)
    tasks = family.tasks(seeds[0])
    results = Results(family.name, family.title, _columns(tasks), list(seeds))
    known = [steps for name in models.experts if (steps := family.steps(name)) is not None]
    results.notes = [*family.notes(), *notes(family, known)]
    if only:
        results.notes.append(f"only {', '.join(only)} was tried")
    results.about["weights"] = {}
    chosen, results.left_out = contenders(
        len(models.experts), family.calibrating, known, family.optimised
    )
    chosen = [] if pairs_alone else [c for c in chosen if not only or c.method in only]
    for_two = pair_contenders(len(models.experts), family.calibrating, only)
    if for_two:
        results.pairs = _pairs(results, tasks, tuple(models.experts))
    journal = Journal(family.folder / "journal.jsonl")
    results.about["resumed"] = old or journal.resumed
    steps = _steps(models, results.one_metric, chosen, grid)
    for pair in results.pairs:
        steps += _steps(_two(models, pair), pair.one_metric, for_two, grid)
    steps *= len(seeds)
    with Progress(console, f"{family.name}: scored", steps) as progress:
        for seed in seeds:
            models = family.train(seed, console)
            trial = Trial(family, seed, models, results, journal, progress, family.tasks(seed))
            trial.everything(chosen, grid)
            for pair in results.pairs:
                trial.of(pair).everything(for_two, grid)
    return results


def _pairs(whole: Results, tasks: Sequence[LabTask], experts: Sequence[str]) -> list[Results]:
    """Where the results of each pair of experts go."""
    found = []
    for two in pairs_of(experts):
        columns = _columns([task for task in tasks if task.owner in two])
        pair = Results(whole.family, " + ".join(two), columns, whole.seeds, of=list(two))
        pair.about["weights"] = {}
        found.append(pair)
    return found


def _two(models: Models, pair: Results) -> Models:
    return Models(models.base, {name: models.experts[name] for name in pair.of})


def _columns(tasks: Sequence[LabTask]) -> list[Column]:
    return [
        Column(t.name, t.metric, t.best, t.expert, task_mark(t.evaluator)[1], t.owner or "")
        for t in tasks
    ]


def _steps(
    models: Models, one_metric: bool, chosen: Sequence[Contender], grid: Sequence[float]
) -> int:
    references = (1 + len(models.experts)) * (1 if one_metric else 2) + (models.joint is not None)
    return references + sum(2 + len(grid) if c.scale else 1 for c in chosen)


@dataclass
class Trial:
    """All that is tried with one seed's models."""

    family: Family
    seed: int
    models: Models
    results: Results
    journal: Journal
    progress: Progress
    tasks: Sequence[LabTask]

    def __post_init__(self) -> None:
        models = self.models
        joint = {} if models.joint is None else {"joint": models.joint}
        states = {"base": models.base, **models.experts, **joint}
        self.weights = weights_mark(states.values())
        self.results.about["weights"][self.seed] = {n: weights_mark([s]) for n, s in states.items()}
        self.asked = {
            "family": self.family.fingerprint(self.seed),
            "weights": self.weights,
            "tasks": [(t.name, t.metric, task_mark(t.evaluator)[0]) for t in self.tasks],
        }
        self._warm = False

    def of(self, pair: Results) -> Trial:
        """The same with two of the experts, on their tasks."""
        tasks = [task for task in self.tasks if task.owner in pair.of]
        models = _two(self.models, pair)
        return Trial(self.family, self.seed, models, pair, self.journal, self.progress, tasks)

    def everything(self, chosen: Sequence[Contender], grid: Sequence[float]) -> None:
        """References, then every contender."""
        self.references()
        for contender in chosen:
            row = self._row(contender)
            if row.failure is not None:  # with an earlier seed
                continue
            try:
                self.contend(contender, row, grid)
            except MergewiseError as error:
                row.failure = str(error)
                row.runs.clear()

    # references

    def references(self) -> None:
        """The base, the experts, and joint training."""
        models, every = self.models, [task.name for task in self.tasks]
        base = self._reference("base", models.base, "test", every)
        experts = {n: self._reference(n, s, "test", every) for n, s in models.experts.items()}
        self.results.experts[self.seed] = {name: dict(scores) for name, scores in experts.items()}
        own = {t.name: experts[t.owner][t.name] for t in self.tasks if t.owner is not None}
        rows = {PRETRAINED: base, TUNED: own, ELSEWHERE: self._elsewhere(experts)}
        if models.joint is not None:
            rows[JOINT] = self._reference("joint", models.joint, "test", every)
        for name, scores in rows.items():
            self._named(name).add("reference", self.seed, Run(scores))
        for label, name in zip(ALONE, self.results.of, strict=False):  # of a pair only
            self._named(label).add("reference", self.seed, Run(experts[name]))
        if not self.results.one_metric:  # then tuning needs to know how far the experts came
            self.validated_base = self._reference("base", models.base, "validation", every)
            self.validated_own = self._validated_experts()

    def _elsewhere(self, experts: Mapping[str, Scores]) -> Scores:
        found = {}
        for task in self.tasks:
            others = [scores[task.name] for name, scores in experts.items() if name != task.owner]
            if others:
                found[task.name] = statistics.fmean(others)
        return found

    def _validated_experts(self) -> Scores:
        own: dict[str, float] = {}
        for name, state in self.models.experts.items():
            mine = [task.name for task in self.tasks if task.owner == name]
            own |= self._reference(name, state, "validation", mine)
        return own

    def _reference(self, name: str, state: State, split: str, tasks: Sequence[str]) -> Scores:
        asked = {**self.asked, "code": code_mark(None), "model": name, "split": split}
        asked["only"] = sorted(tasks)
        known = self.journal.get(asked)
        if known is None:
            known = self._scored(state, name, split, tasks)
            self.journal.put(asked, known)
            self.progress.step(name)
        else:
            self.progress.step(name, free=True)
        return known

    def _scored(self, state: State, name: str, split: str, only: Sequence[str]) -> dict[str, float]:
        model = self.family.live(state, name)
        return {
            task.name: float(task.evaluator.score(model, split).metrics[task.metric])
            for task in self.tasks
            if task.name in only
        }

    # contenders

    def contend(self, contender: Contender, row: Row, grid: Sequence[float]) -> None:
        """Merge and score at the default, then at the scale that validation prefers."""
        row.add("default", self.seed, self._run(contender, contender.default))
        if contender.scale is None:
            return
        choice = choose(contender.default, grid, lambda v: self._validated(contender, v))
        row.evaluations = len(grid)
        if choice is None:
            return
        tuned = self._run(contender, choice.value)
        row.add("tuned", self.seed, Run(
            tuned.scores, choice.value, tuned.seconds, tuned.mebibytes, choice.quality
        ))  # fmt: skip

    def _run(self, contender: Contender, scale: float | None) -> Run:
        found = self._outcome(contender, scale, "test")
        return Run(found["scores"], scale, found["seconds"], found["mebibytes"])

    def _validated(self, contender: Contender, scale: float) -> float | None:
        found = self._outcome(contender, scale, "validation")
        return self._quality(found["scores"])

    def _quality(self, scores: Scores) -> float | None:
        if self.results.one_metric:
            return Measures(self.results).quality(scores, self.seed)
        base, own = self.validated_base, self.validated_own
        values = normalised(self.results.trained, scores, base, own).values()
        return statistics.fmean(values) if values else None

    def _outcome(self, contender: Contender, scale: float | None, split: str) -> dict[str, Any]:
        asked = {
            **self.asked,
            "code": code_mark(contender.method),
            "method": contender.method,
            "parameters": contender.at(scale),
            "base": contender.base,
            "examples": contender.examples,
            "split": split,
        }
        if contender.examples:
            asked["evidence"] = evidence_mark()
        if contender.walked:
            asked["walked"] = True
        asked |= marks(contender)
        known = self.journal.get(asked)
        if known is not None:
            self.progress.step(contender.name, free=True)
            return known
        state, cost = self._merged(contender, scale)
        trained = [task.name for task in self.tasks if split == "test" or task.expert]
        scores = self._scored(state, contender.name, split, trained)
        known = {"scores": scores, "seconds": cost.seconds, "mebibytes": cost.mebibytes,
                 "memory": cost.how}  # fmt: skip
        self.journal.put(asked, known)
        self.progress.step(contender.name)
        return known

    def _merged(self, contender: Contender, scale: float | None) -> tuple[State, Cost]:
        device = self.family.device
        experts = list(self.models.experts.values())
        if not self._warm:  # the first merge of a process also loads the engine
            merge(experts, "linear", parameters={"weight": 1.0}, device=device)
            self._warm = True
        given = given_of(self.family, self.seed, self.models, contender)
        how = {"seed": self.seed, "device": device}
        return measured(lambda: merged(self.models, contender, scale, given, **how), device)

    # rows

    def _named(self, name: str) -> Row:
        row = self.results.row(name)
        if row is None:
            row = Row(name)
            self.results.rows.append(row)
        return row

    def _row(self, contender: Contender) -> Row:
        row = self._named(contender.name)
        row.method, row.parameters = contender.method, contender.parameters
        row.scale, row.data, row.examples = contender.scale, contender.data, contender.examples
        return row
