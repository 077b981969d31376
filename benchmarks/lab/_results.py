"""What a run found, by row and seed, and the measures made from it.

Scores of unlike metrics are never averaged. `nai` is (score − base) / (expert − base): 0 is the
base, 1 the task's own expert, for accuracies and losses alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mergewise.report._measures import gain, ratio

Setting = Literal["reference", "default", "tuned"]
PRETRAINED, TUNED, ELSEWHERE, JOINT = "pretrained", "fine-tuned", "experts elsewhere", "joint"
FLAT = 0.01
"""An expert that gained less than this, in shares or nats, gives no scale to normalise by."""


@dataclass(frozen=True)
class Column:
    """A task, as far as reports need it; `of` is its expert's name, empty if it has none."""

    name: str
    metric: str
    best: Literal["max", "min"]
    expert: bool = True
    examples: Mapping[str, int] = field(default_factory=dict)
    of: str = ""

    @property
    def share(self) -> bool:
        """Whether scores are shares of examples, shown in percent."""
        return self.best == "max"


@dataclass(frozen=True)
class Run:
    """One row at one setting with one seed.

    Attributes:
        scores: by task, on the test split.
        scale: the value of the tuned parameter, None where there is none.
        seconds: wall time of the merge; None for rows that are not merged.
        mebibytes: its peak memory, beyond the models themselves.
        validation: what the tuning compared by, None if nothing was tuned.
    """

    scores: Mapping[str, float]
    scale: float | None = None
    seconds: float | None = None
    mebibytes: float | None = None
    validation: float | None = None


@dataclass
class Row:
    """A line of the table, with its runs by setting and seed.

    Attributes:
        evaluations: how many times the validation split was scored for it, per seed.
        failure: why it has no runs.
    """

    name: str
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scale: str | None = None
    data: str = "none"
    examples: int = 0
    evaluations: int = 0
    failure: str | None = None
    runs: dict[Setting, dict[int, Run]] = field(default_factory=dict)

    def add(self, setting: Setting, seed: int, run: Run) -> None:
        """Put a run where it belongs."""
        self.runs.setdefault(setting, {})[seed] = run


@dataclass
class Results:
    """All rows of a family.

    Attributes:
        about: what is needed to run it again: command, settings, versions, hardware.
        left_out: methods that did not take part, and why.
        experts: every expert's scores on every task, by seed: expert, then task.
        of: the experts, where these are results of two of the family's.
        pairs: results of pairs of experts, on their own tasks.
    """

    family: str
    title: str
    columns: list[Column]
    seeds: list[int]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    experts: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    of: list[str] = field(default_factory=list)
    pairs: list[Results] = field(default_factory=list)

    def row(self, name: str) -> Row | None:
        """The row called `name`."""
        return next((row for row in self.rows if row.name == name), None)

    def reference(self, name: str, seed: int) -> Mapping[str, float]:
        """A reference row's scores; empty if there is none."""
        row = self.row(name)
        run = row.runs.get("reference", {}).get(seed) if row else None
        return run.scores if run else {}

    @property
    def trained(self) -> list[Column]:
        """Tasks that an expert was trained for."""
        return [column for column in self.columns if column.expert]

    @property
    def one_metric(self) -> bool:
        """Whether the experts' tasks share a metric, so that a mean over them means something."""
        return len({(c.metric, c.best) for c in self.trained}) == 1

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


Measure = Callable[[Mapping[str, float], int], float | None]


def spread(results: Results, row: Row, setting: Setting, measure: Measure) -> Spread | None:
    """A measure of a row over seeds; None if it cannot be made."""
    values = [measure(run.scores, seed) for seed, run in row.runs.get(setting, {}).items()]
    known = [value for value in values if value is not None]
    return Spread.of(known) if known and len(known) == len(values) else None


class Measures:
    """Numbers made of the scores of one model: ``measure(scores, seed)``, None if not defined."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def mean(self, columns: Iterable[Column]) -> Measure:
        """Of tasks that share a metric."""
        names = [column.name for column in columns]

        def mean(scores: Mapping[str, float], seed: int) -> float | None:
            known = [scores[name] for name in names if name in scores]
            return statistics.fmean(known) if known and len(known) == len(names) else None

        return mean

    def quality(self, scores: Mapping[str, float], seed: int) -> float | None:
        """What rows are ordered by, more is better: the mean score, or for losses its negative,
        or where metrics differ the mean `nai`."""
        trained = self.results.trained
        if not self.results.one_metric:
            return self.nai(scores, seed)
        value = statistics.fmean(scores[column.name] for column in trained)
        return value if trained[0].best == "max" else -value

    def nais(self, scores: Mapping[str, float], seed: int) -> dict[str, float]:
        """By task, where the expert differs from the base."""
        base = self.results.reference(PRETRAINED, seed)
        expert = self.results.reference(TUNED, seed)
        return normalised(self.results.trained, scores, base, expert)

    def nai(self, scores: Mapping[str, float], seed: int) -> float | None:
        """Mean over tasks."""
        values = self.nais(scores, seed).values()
        return statistics.fmean(values) if values else None

    def worst_nai(self, scores: Mapping[str, float], seed: int) -> float | None:
        """The least over tasks."""
        return min(self.nais(scores, seed).values(), default=None)

    def ratio(self, scores: Mapping[str, float], seed: int) -> float | None:
        """Mean of score / expert's score (expert's / score for losses)."""
        expert = self.results.reference(TUNED, seed)
        parts = [_ratio(column, scores, expert) for column in self.results.trained]
        known = [part for part in parts if part is not None]
        return statistics.fmean(known) if known and len(known) == len(parts) else None

    def worst(self, scores: Mapping[str, float], seed: int) -> float | None:
        """The worst task's score, where the tasks share a metric."""
        if not self.results.one_metric:
            return None
        values = [scores[column.name] for column in self.results.trained]
        return min(values) if self.results.trained[0].best == "max" else max(values)

    def forgetting(self, scores: Mapping[str, float], seed: int) -> float | None:
        """Mean over all tasks with the experts' metric of how far below the base they are."""
        if not self.results.one_metric:
            return None
        metric = self.results.trained[0].metric
        columns = [c for c in self.results.columns if c.metric == metric and c.name in scores]
        base = self.results.reference(PRETRAINED, seed)
        return statistics.fmean(max(0.0, -_gain(c, scores, base)) for c in columns)

    def below(self, scores: Mapping[str, float], seed: int) -> float | None:
        """How many of all tasks are worse than with the base."""
        base = self.results.reference(PRETRAINED, seed)
        return float(
            sum(_gain(c, scores, base) < 0 for c in self.results.columns if c.name in scores)
        )


def normalised(
    columns: Iterable[Column],
    scores: Mapping[str, float],
    base: Mapping[str, float],
    expert: Mapping[str, float],
) -> dict[str, float]:
    """(score − base) / (expert − base) by task, where the expert gained `FLAT` or more."""
    found = {}
    for column in columns:
        reach = _gain(column, expert, base)
        if reach > FLAT:
            found[column.name] = _gain(column, scores, base) / reach
    return found


def _gain(column: Column, scores: Mapping[str, float], base: Mapping[str, float]) -> float:
    return gain(scores[column.name], base[column.name], column.best)


def _ratio(
    column: Column, scores: Mapping[str, float], expert: Mapping[str, float]
) -> float | None:
    reference = expert.get(column.name)
    return None if reference is None else ratio(scores[column.name], reference, column.best)


def reference_means(results: Results) -> dict[str, float]:
    """Mean score over the experts' tasks and seeds, by row; merged rows at their defaults.

    Empty where the tasks differ in metric. Rows of a method's variants are also known by the
    method's name, the first of them.
    """
    if not results.one_metric:
        return {}
    measure = Measures(results).mean(results.trained)
    found: dict[str, float] = {}
    for row in results.rows:
        setting: Setting = "reference" if "reference" in row.runs else "default"
        value = spread(results, row, setting, measure)
        if value is not None:
            for name in (row.name, row.method or row.name):
                found.setdefault(name, value.mean)
    return found
