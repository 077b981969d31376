"""The table of two experts: methods down, pairs and means over pairs across."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.lab._pairs import ALONE, FORGETTING
from benchmarks.lab._results import (
    PRETRAINED,
    TUNED,
    Measure,
    Measures,
    Results,
    Row,
    Setting,
    Spread,
)
from benchmarks.lab._table import aligned, ruled, written

if TYPE_CHECKING:
    from rich.console import Console

Pairs = Sequence[Results]
Line = tuple[str, Setting]
_SETTINGS: tuple[Setting, ...] = ("reference", "default", "tuned")
_NOTES = (
    "arcee_fusion, bcwi, copy_region, crossover, nearswap, rotate, slerp: the first expert stands "
    "where the method has its base; bcwi is made for a successor of that model, which the second "
    "expert is not",
    "nearswap: t is a distance between weights; two are tried, none is tuned",
    "aim: a stage after the average, with the input magnitudes of the base that both come from",
)


def two_experts(results: Results) -> list[str]:
    """The page's lines; none if no pair was tried."""
    pairs = results.pairs
    if not pairs:
        return []
    keeping, forgetting = (_table(pairs, _lines(pairs, forget)) for forget in (False, True))
    failed = {f"{r.name}: {r.failure}" for p in pairs for r in p.rows if r.failure is not None}
    parts = [_words(pairs), "", *ruled(*keeping), ""]
    parts += [*(f"* {note}" for note in _NOTES), *(f"* failed: {f}" for f in sorted(failed)), ""]
    if forgetting[1]:
        parts += [
            "To keep the first expert's task and to forget the second's: *first* should stay near "
            "100, *second* fall to 0 or below.",
            "",
            *ruled(*forgetting),
            "",
        ]
    return parts


def show_two(results: Results, console: Console) -> None:
    """Print the same."""
    if not results.pairs:
        return
    heads, body = _table(results.pairs, _lines(results.pairs, False))
    _, more = _table(results.pairs, _lines(results.pairs, True))
    made = aligned([["two experts", "", *heads[2:]], *body, *more])
    console.print("\n".join([*made, ""]), markup=False, highlight=False, soft_wrap=True)


def _words(pairs: Pairs) -> str:
    named = "; ".join(" and ".join(pair.of) for pair in pairs)
    return (
        f"Methods for two models on pairs of experts ({named}), scored on the two experts' own "
        "tasks, tuned by the same rules; five methods for any number stand beside them. Under each "
        "pair is its NAI in percent: 0 is the base that both come from, 100 each expert on its own "
        "task. *NAI* is the mean over pairs, ± standard deviation over seeds; *first* and "
        "*second* are NAI on the tasks of the pair's first and second expert."
    )


def _lines(pairs: Pairs, forget: bool) -> list[Line]:
    """References, then methods, the best first; or those that are to forget the second."""
    rows = {row.name: row for pair in pairs for row in pair.rows if row.runs}
    mine = [r for r in rows.values() if r.method is not None and (r.name in FORGETTING) is forget]
    mine.sort(key=lambda row: _order(pairs, row), reverse=True)
    references = [rows[n] for n in (PRETRAINED, *ALONE, TUNED) if n in rows and not forget]
    return [(row.name, s) for row in [*references, *mine] for s in _SETTINGS if s in row.runs]


def _order(pairs: Pairs, row: Row) -> float:
    setting: Setting = "tuned" if "tuned" in row.runs else "default"
    found = _mean(pairs, (row.name, setting), lambda pair: Measures(pair).nai)
    return found.mean if found and found.mean == found.mean else float("-inf")


def _table(pairs: Pairs, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Headings, and cells by line."""
    accuracy = _accuracy(pairs)
    heads = ["method", "", *(pair.title for pair in pairs), "NAI", *accuracy, "first", "second"]
    body = [[*_named(line), *_scores(pairs, line, bool(accuracy)), *_costs(pairs, line)]
            for line in lines]  # fmt: skip
    return [*heads, "scale", "seconds", "data"], body


def _named(line: Line) -> list[str]:
    return [line[0], "" if line[1] == "reference" else line[1]]


def _accuracy(pairs: Pairs) -> list[str]:
    """The heading of the mean score, if all tasks share a metric."""
    metrics = {(column.metric, column.best) for pair in pairs for column in pair.trained}
    return [f"mean {metric}" for metric, _ in metrics] if len(metrics) == 1 else []


def _scores(pairs: Pairs, line: Line, accuracy: bool) -> list[str]:
    def cell(of: Pairs, measure: Callable[[Results], Measure], share: bool = True) -> str:
        found = _mean(of, line, measure)
        return "–" if found is None else written(found, share, of is pairs)

    def nai(pair: Results) -> Measure:
        return Measures(pair).nai

    cells = [*(cell([pair], nai) for pair in pairs), cell(pairs, nai)]
    if accuracy:
        share = pairs[0].trained[0].share
        cells.append(cell(pairs, lambda pair: Measures(pair).mean(pair.trained), share))
    return [*cells, *(cell(pairs, lambda pair, i=i: _of_one(pair, i)) for i in (0, 1))]  # type: ignore[misc]


def _of_one(pair: Results, place: int) -> Measure:
    """NAI on the tasks of the first or the second expert."""
    names = {column.name for column in pair.trained if column.of == pair.of[place]}

    def mean(scores: object, seed: int) -> float | None:
        found = Measures(pair).nais(scores, seed)  # type: ignore[arg-type]
        mine = [value for name, value in found.items() if name in names]
        return statistics.fmean(mine) if mine else None

    return mean


def _mean(pairs: Pairs, line: Line, measure: Callable[[Results], Measure]) -> Spread | None:
    """Over pairs, with its spread over seeds; None where a pair has no such row.

    Pairs in which it is not defined (no expert gained enough to measure by) are left out.
    """
    by_pair = [_by_seed(pair, line, measure(pair)) for pair in pairs]
    known = [values for values in by_pair if values]
    if None in by_pair or not known:
        return None
    return Spread.of([statistics.fmean(values) for values in zip(*known, strict=True)])


def _by_seed(pair: Results, line: Line, measure: Measure) -> list[float] | None:
    """A measure of a row for every seed, empty if it is not defined; None without the row."""
    row = pair.row(line[0])
    runs = row.runs.get(line[1], {}) if row else {}
    if not runs.keys() >= set(pair.seeds):
        return None
    values = [measure(runs[seed].scores, seed) for seed in pair.seeds]
    known = [value for value in values if value is not None]
    return known if len(known) == len(pair.seeds) else []


def _costs(pairs: Pairs, line: Line) -> list[str]:
    rows = [row for pair in pairs if (row := pair.row(line[0])) is not None]
    runs = [run for row in rows for run in row.runs.get(line[1], {}).values()]
    scales = sorted({run.scale for run in runs if run.scale is not None})
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return [
        f"{rows[0].scale} {', '.join(f'{scale:g}' for scale in scales)}" if scales else "–",
        f"{statistics.fmean(seconds):.2f}" if seconds else "–",
        _data(rows[0]),
    ]


def _data(row: Row) -> str:
    if row.method is None:
        return "–"
    return f"{row.data}, {row.examples} examples" if row.examples else row.data
