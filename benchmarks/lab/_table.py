"""The table: methods down, tasks and measures across; on screen and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.lab._results import (
    PRETRAINED,
    Column,
    Measure,
    Measures,
    Results,
    Row,
    Setting,
    Spread,
    spread,
)
from benchmarks.lab._words import explained

if TYPE_CHECKING:
    from rich.console import Console

Cell = Callable[[Row, Setting], str]
MINUS = "−"


@dataclass(frozen=True)
class Field:
    """A column of the table.

    Attributes:
        head: its heading.
        cell: what stands in a row.
        wide: part of the second table on a screen, where one is too wide.
        meaning: for the legend; empty for tasks.
    """

    head: str
    cell: Cell
    wide: bool = True
    meaning: str = ""


def fields(results: Results) -> list[Field]:
    """All columns after the method's name and setting."""
    measures = Measures(results)
    made = [Field(c.name, _task(results, c), wide=False) for c in results.columns]
    for name, columns in _by_metric(results.trained).items():
        made.append(Field(
            f"mean {name}", _measured(
                results, measures.mean(columns), columns[0].share, True),
            False, f"mean {name} of the tasks that have an expert, ± standard deviation over seeds",
        ))  # fmt: skip
    made += _compared(results, measures)
    for name, columns in _by_metric([c for c in results.columns if not c.expert]).items():
        made.append(Field(
            f"held-out {name}", _measured(
                results, measures.mean(columns), columns[0].share, True),
            True, f"mean {name} of the tasks that no expert was trained for",
        ))  # fmt: skip
    return made + _costs()


def _compared(results: Results, measures: Measures) -> list[Field]:
    def field(head: str, measure: Measure, share: bool, meaning: str) -> Field:
        return Field(head, _measured(results, measure, share), True, meaning)

    made = [
        field("normalised", measures.ratio, True,
              "mean of score / fine-tuned score (for losses the inverse), percent"),
        field("NAI", measures.nai, True,
              "mean of (score − base) / (fine-tuned − base), percent"),
    ]  # fmt: skip
    if results.one_metric:
        share = results.trained[0].share
        made += [
            field("worst", measures.worst, share, "score of the worst task"),
            field("forgets", measures.forgetting, share,
                  "mean over tasks of how far the score is below the base's, 0 where it is above"),
        ]  # fmt: skip
    made.append(field("worst NAI", measures.worst_nai, True, "least over tasks, percent"))
    below = Field("below base", _measured(results, measures.below, None), True,
                  "tasks worse than with the base, held-out ones included")  # fmt: skip
    return [*made, below]


def _costs() -> list[Field]:
    return [
        Field("scale", _scale, True, "value of the scale: a default, or the tuned ones by seed"),
        Field("tries", lambda row, s: str(row.evaluations) if s == "tuned" else "–", True,
              "scores on the validation split that tuning took, each seed"),
        Field("seconds", _seconds, True, "wall time of the merge, without scoring"),
        Field("MiB", _mebibytes, True,
              "peak memory of the merge beyond the models, largest over seeds"),
        Field("data", lambda row, s: _data(row), True,
              "data the merge needs besides the models, and how many examples"),
    ]  # fmt: skip


def lines(results: Results) -> Iterator[tuple[Row, Setting]]:
    """The table's lines: references, then merged rows, the best first."""
    references = [row for row in results.rows if "reference" in row.runs]
    for row in references:
        yield row, "reference"
    merged = [row for row in results.rows if row.method is not None and row.runs]
    for row in sorted(merged, key=lambda row: _order(results, row), reverse=True):
        for setting in ("default", "tuned"):
            if setting in row.runs:
                yield row, setting


def _order(results: Results, row: Row) -> float:
    setting: Setting = "tuned" if "tuned" in row.runs else "default"
    found = spread(results, row, setting, Measures(results).quality)
    return found.mean if found and found.mean == found.mean else float("-inf")


def cells(results: Results) -> tuple[list[Field], list[tuple[str, str, list[str]]]]:
    """The columns, and for each line its name, its setting and its cells."""
    columns = fields(results)
    body = []
    for row, setting in lines(results):
        said = "" if setting == "reference" else setting
        body.append((row.name, said, [column.cell(row, setting) for column in columns]))
    return columns, body


def markdown(results: Results) -> str:
    """The whole table, its legend, and what is not in it."""
    columns, body = cells(results)
    heads = ["method", "", *(column.head for column in columns)]
    rows = ruled(heads, [[name, said, *row] for name, said, row in body])
    legend = explained(name for name, _, _ in body)
    legend += [f"* **{c.head}**: {c.meaning}" for c in columns if c.meaning]
    return "\n".join([*rows, "", *legend, *([""] if legend else []), *absent(results)]) + "\n"


def ruled(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown: two columns to the left, the others to the right."""
    return [
        "| " + " | ".join(heads) + " |",
        "|---|---|" + "---:|" * (len(heads) - 2),
        *("| " + " | ".join(row) + " |" for row in body),
    ]


def absent(results: Results) -> list[str]:
    """Lines about methods that took no part, with two experts neither, or failed."""
    reasons: dict[str, list[str]] = {}
    elsewhere = {row.method for pair in results.pairs for row in pair.rows}
    for name, reason in results.left_out.items():
        if name in elsewhere:
            continue
        reasons.setdefault(reason, []).append(name)
    said = [f"Not tried, {reason}: {', '.join(names)}." for reason, names in reasons.items()]
    failed = [row for row in results.rows if row.failure is not None]
    return said + [f"Failed: {row.name}: {row.failure}" for row in failed]


def show(results: Results, console: Console) -> None:
    """Print the table: tasks first, then measures, since both together are too wide.

    A terminal that is too narrow for the tasks gets the measures alone.
    """
    from mergewise.report.tables import text

    columns, body = cells(results)
    for wide in (False, True):
        picked = [i for i, column in enumerate(columns) if column.wide is wide]
        made = _printed([columns[i].head for i in picked], body, picked)
        if wide or not console.is_terminal or len(made[0]) <= console.width:
            console.print("\n".join(made), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print("(the terminal is too narrow for the tasks; they are in the files)")
        console.print()
    for line in absent(results):
        console.print(text(line), soft_wrap=True)


def _printed(
    heads: Sequence[str], body: Sequence[tuple[str, str, list[str]]], picked: Sequence[int]
) -> list[str]:
    """Lines of equal length: names to the left, numbers to the right."""
    rows = [[name, said, *(row[i] for i in picked)] for name, said, row in body]
    return aligned([["", "", *heads], *rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equal length: two columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _by_metric(columns: Sequence[Column]) -> dict[str, list[Column]]:
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.metric, []).append(column)
    return groups


def _task(results: Results, column: Column) -> Cell:
    return _measured(results, lambda scores, seed: scores.get(column.name), column.share)


def _measured(
    results: Results, measure: Measure, share: bool | None, deviation: bool = False
) -> Cell:
    def cell(row: Row, setting: Setting) -> str:
        found = spread(results, row, setting, measure)
        return "–" if found is None else written(found, share, deviation)

    return cell


def written(value: Spread, share: bool | None, deviation: bool) -> str:
    """A number: percent for shares, three decimals for losses, one for counts (share None)."""
    factor, places = {True: (100.0, 1), False: (1.0, 3), None: (1.0, 1)}[share]
    text = f"{factor * value.mean:.{places}f}"
    if deviation and value.deviation is not None:
        text += f" ± {factor * value.deviation:.{places}f}"
    return text.replace("-", MINUS)


def _scale(row: Row, setting: Setting) -> str:
    values = [run.scale for run in row.runs[setting].values() if run.scale is not None]
    if not values or row.scale is None:
        return "–"
    return f"{row.scale} {', '.join(f'{v:g}' for v in dict.fromkeys(values))}"


def _seconds(row: Row, setting: Setting) -> str:
    values = [run.seconds for run in row.runs[setting].values() if run.seconds is not None]
    return f"{fmean(values):.2f}" if values else "–"


def _mebibytes(row: Row, setting: Setting) -> str:
    values = [run.mebibytes for run in row.runs[setting].values() if run.mebibytes is not None]
    return f"{max(values):.1f}" if values else "–"


def _data(row: Row) -> str:
    if row.method is None:
        return "–"
    return f"{row.data}, {row.examples} examples" if row.examples else row.data


def headline(results: Results) -> str:
    """One sentence: base, best merge, joint training, fine-tuned."""
    merged = [(row, s) for row, s in lines(results) if s != "reference"]
    measure = Measures(results).quality
    best = max(merged, key=lambda line: _value(results, *line, measure), default=None)
    base = results.row(PRETRAINED)
    parts = [("base", _value(results, base, "reference", measure))] if base else []
    if best is not None:
        parts.append((f"best merge ({best[0].name}, {best[1]})", _value(results, *best, measure)))
    for name in ("joint", "fine-tuned"):
        if (row := results.row(name)) is not None:
            parts.append((name, _value(results, row, "reference", measure)))
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in parts)


def _value(results: Results, row: Row, setting: Setting, measure: Measure) -> float:
    found = spread(results, row, setting, measure)
    return found.mean if found else float("nan")
