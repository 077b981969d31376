"""Guided minus uniform, cell by cell, and how sure the mean of the differences is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lab._guides_arms import UNIFORM
from benchmarks.lab._guides_run import Outcome

RESAMPLES = 10_000
SMALLER_IS_BETTER = {"nll", "loss"}


@dataclass(frozen=True)
class Difference:
    """One cell's task: how much better guided is than uniform.

    Attributes:
        cluster: (seed, expert): what differences have in common and are not independent in.
        gain: positive where guided is better: nats less, or a greater share right.
    """

    arm: str
    calibration: str
    set: str
    metric: str
    method: str
    density: float
    cluster: tuple[int, str]
    gain: float


@dataclass(frozen=True)
class Verdict:
    """A mean of differences and what is known of it.

    Attributes:
        mean: over cells.
        error: its standard error, as if cells were independent.
        low: of the 95 % interval of means over resampled clusters.
        high: likewise.
        better: cells in which guided is better.
        worse: in which it is worse.
        cells: all of them.
        clusters: pairs of seed and expert.
        p_cells: Wilcoxon's signed-rank test over cells, two-sided.
        p: the same over the means of clusters, which are more nearly independent.
    """

    mean: float
    error: float
    low: float
    high: float
    better: int
    worse: int
    cells: int
    clusters: int
    p_cells: float
    p: float

    @property
    def word(self) -> str:
        """What the interval over clusters says."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


def differences(outcomes: Iterable[Outcome]) -> list[Difference]:
    """Every guided cell against the uniform one of the same seed, experts, method and density."""
    outcomes = list(outcomes)
    uniform = {_place(o): o for o in outcomes if o.cell.arm == UNIFORM and o.scores}
    found = []
    for one in outcomes:
        other = uniform.get(_place(one))
        if one.cell.arm == UNIFORM or other is None:
            continue
        for task, scores in one.scores.items():
            for metric, value in scores.items():
                sign = -1 if metric in SMALLER_IS_BETTER else 1
                cell = one.cell
                owner = cell.experts[0] if len(cell.experts) == 1 else task
                found.append(Difference(
                    cell.arm, cell.calibration, cell.set, metric, cell.method, cell.density,
                    (cell.seed, owner), sign * (value - other.scores[task][metric]),
                ))  # fmt: skip
    return found


def _place(one: Outcome) -> tuple[Any, ...]:
    return (one.cell.seed, one.cell.experts, one.cell.method, one.cell.density)


def by(
    found: Iterable[Difference], key: Callable[[Difference], Any]
) -> dict[Any, list[Difference]]:
    """Differences in groups."""
    groups: dict[Any, list[Difference]] = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)
    return dict(groups)


def verdict(found: Sequence[Difference], seed: int = 0) -> Verdict:
    """What a group of differences says together."""
    gains = [one.gain for one in found]
    clusters = by(found, lambda one: one.cluster)
    parts = [[one.gain for one in group] for group in clusters.values()]
    low, high = _interval(parts, seed)
    means = [math.fsum(part) / len(part) for part in parts]
    return Verdict(
        mean=math.fsum(gains) / len(gains),
        error=_error(gains),
        low=low,
        high=high,
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
        cells=len(gains),
        clusters=len(parts),
        p_cells=signed_rank(gains),
        p=signed_rank(means),
    )


def contrast(
    one: Iterable[Difference], other: Iterable[Difference], calibration: str = ""
) -> list[Difference]:
    """Differences of differences, over the cells that both have."""
    known = {_cell(d): d for d in other}
    return [
        Difference(
            d.arm, calibration or d.calibration, d.set, d.metric, d.method, d.density, d.cluster,
            d.gain - known[_cell(d)].gain,
        )
        for d in one
        if _cell(d) in known
    ]  # fmt: skip


def _cell(one: Difference) -> tuple[Any, ...]:
    return (one.set, one.metric, one.method, one.density, one.cluster)


def signed_rank(values: Sequence[float]) -> float:
    """The p-value of Wilcoxon's test, two-sided; 1 where all are zero.

    Exact for up to 25 values that are all of different size, else by the normal approximation
    with its correction for ties (Wilcoxon 1945; zeros are left out).
    """
    kept = [value for value in values if value]
    if not kept:
        return 1.0
    ranks = _ranks([abs(value) for value in kept])
    plus = math.fsum(r for r, value in zip(ranks, kept, strict=True) if value > 0)
    if len(kept) <= 25 and len(set(ranks)) == len(ranks):
        return _exact(plus, len(kept))
    return _normal(plus, ranks)


def _ranks(sizes: Sequence[float]) -> list[float]:
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    ranks = [0.0] * len(sizes)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and sizes[order[end]] == sizes[order[start]]:
            end += 1
        for i in order[start:end]:
            ranks[i] = (start + 1 + end) / 2
        start = end
    return ranks


def _exact(plus: float, n: int) -> float:
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    least = round(min(plus, n * (n + 1) / 2 - plus))
    return min(1.0, 2 * sum(ways[: least + 1]) / 2**n)


def _normal(plus: float, ranks: Sequence[float]) -> float:
    n = len(ranks)
    counts = [ranks.count(rank) for rank in set(ranks)]
    variance = n * (n + 1) * (2 * n + 1) / 24 - sum(c**3 - c for c in counts) / 48
    away = max(0.0, abs(plus - n * (n + 1) / 4) - 0.5)
    return math.erfc(away / math.sqrt(2 * variance)) if variance > 0 else 1.0


def _error(gains: Sequence[float]) -> float:
    if len(gains) < 2:
        return math.nan
    mean = math.fsum(gains) / len(gains)
    spread = math.fsum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return math.sqrt(spread / len(gains))


def _interval(parts: Sequence[Sequence[float]], seed: int) -> tuple[float, float]:
    """The central 95 % of means over clusters drawn with replacement."""
    import numpy

    if len(parts) < 2:
        return -math.inf, math.inf
    sums = numpy.array([math.fsum(part) for part in parts])
    counts = numpy.array([len(part) for part in parts])
    drawn = numpy.random.default_rng(seed).integers(0, len(parts), (RESAMPLES, len(parts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = numpy.quantile(means, (0.025, 0.975))
    return float(low), float(high)
