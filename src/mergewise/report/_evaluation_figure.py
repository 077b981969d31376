"""One picture of an evaluation: every score on coloured ground, and the means beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.report._dots import Dot, dot_panel
from mergewise.report._evaluation_summary import shown
from mergewise.report._evaluation_table import names
from mergewise.report._heat import Cell, heat_panel, name_panel
from mergewise.report._measures import Measures
from mergewise.report._svg import beside, document
from mergewise.report.text import count

if TYPE_CHECKING:
    from mergewise.evidence import Evaluation


def figure(evaluation: Evaluation, resamples: int = 1000, seed: int = 0) -> str:
    """A self-contained SVG.

    Left, scores of models (down) on tasks (across), darker where they are a larger share of the
    expert's; without experts, where they are nearer to the column's best. Right, the mean share
    with its 95 % bootstrap interval over examples, and the worst task; without experts the mean
    score.

    Args:
        resamples: draws for the intervals, 0 for none.
    """
    measures = Measures(evaluation, resamples, seed)
    found = {model: measures.of(model) for model in evaluation.scores}
    by_share = any(entry["normalised"] and _shares(entry) for entry in found.values())
    shades = _normalised(measures, found) if by_share else _within_columns(measures)
    rows, columns = list(names(measures).values()), [_column(measures, t) for t in measures.tasks]
    panels = [name_panel(rows), heat_panel(rows, columns, _cells(measures), shades=shades)]
    dots, axis = _shared(found) if by_share else _plain(found, measures)
    if any(any(value is not None for value in row.values()) for row in dots):
        lines = {"expert": 1.0} if by_share else {}
        panels.append(dot_panel(dots, axis, lines=lines, width=330))
    models = count(len(found), "model")
    title = f"{models} on {count(len(measures.tasks), 'task')}, split {evaluation.split}"
    return document(title, beside(panels), _notes(measures, by_share, resamples, found))


def _shares(entry: Mapping[str, Any]) -> list[float]:
    return [v for v in entry["normalised"]["by_task"].values() if v is not None]


def _cells(measures: Measures) -> list[list[Cell]]:
    def cell(model: str, task: str) -> str | None:
        if measures.score(model, task) is None:
            return "failed"
        value = measures.value(model, task)
        return None if value is None else shown(value)

    return [[cell(m, task) for task in measures.tasks] for m in measures.evaluation.scores]


def _column(measures: Measures, task: str) -> str:
    arrow = "" if measures.evaluation.primary[task][1] == "max" else " ↓"
    return task + arrow + (" (held out)" if task in measures.evaluation.held_out else "")


def _normalised(measures: Measures, found: Mapping[str, Any]) -> list[list[Cell]]:
    return [
        [(entry["normalised"] or {"by_task": {}})["by_task"].get(t) for t in measures.tasks]
        for entry in found.values()
    ]


def _within_columns(measures: Measures) -> list[list[Cell]]:
    """From 0, the column's worst, to 1, its best."""
    columns = []
    for task in measures.tasks:
        values = [measures.value(model, task) for model in measures.evaluation.scores]
        known = [v for v in values if v is not None]
        sign = 1 if measures.evaluation.primary[task][1] == "max" else -1
        columns.append([None if v is None else _place(sign * v, [sign * k for k in known])
                        for v in values])  # fmt: skip
    return [list(row) for row in zip(*columns, strict=True)]


def _place(value: float, among: Sequence[float]) -> float:
    low, high = min(among), max(among)
    return (value - low) / (high - low) if high > low else 0.5


def _shared(found: Mapping[str, Any]) -> tuple[list[dict[str, Dot]], str]:
    rows: list[dict[str, Dot]] = []
    for entry in found.values():
        summary = entry["normalised"] or {}
        row = {"mean": _spread(summary.get("mean"), entry, "normalised")}
        if len(summary.get("by_task", ())) > 1:
            row["worst task"] = (summary["worst"] or {}).get("value")
        rows.append(row)
    return rows, "share of the expert's score"


def _plain(found: Mapping[str, Any], measures: Measures) -> tuple[list[dict[str, Dot]], str]:
    rows: list[dict[str, Dot]] = [
        {"mean": _spread(entry["mean"], entry, "mean")} for entry in found.values()
    ]
    return rows, f"mean {measures.metric}"


def _spread(mean: float | None, entry: Mapping[str, Any], name: str) -> Dot:
    ends = entry.get("intervals", {}).get(name)
    return mean if mean is None or ends is None else (mean, *ends)


def _notes(
    measures: Measures, by_share: bool, resamples: int, found: Mapping[str, Any]
) -> list[str]:
    notes = ["Colour: the share of the expert's score; grey where there is none."]
    if not by_share:
        notes = ["Colour: from the worst (light) to the best (dark) of each column."]
    kind = "normalised" if by_share else "mean"
    if resamples and any(kind in entry["intervals"] for entry in found.values()):
        notes.append(
            f"Bars: 95 % bootstrap interval over examples, {resamples} draws; the experts' scores "
            "are taken as fixed." if by_share else
            f"Bars: 95 % bootstrap interval over examples, {resamples} draws."
        )  # fmt: skip
    if any(best == "min" for _, best in measures.evaluation.primary.values()):
        share = "; the share is then the expert's score over the model's" if by_share else ""
        notes.append(f"↓: less is better{share}.")
    return notes + [f"– {note}" for note in measures.notes if "interval" not in note]
