"""Tables of an evaluation: models down, tasks across; then what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mergewise.report._evaluation_summary import MISSING, agreement, shown, summary_columns, top
from mergewise.report._flips import comparisons
from mergewise.report._measures import Measures
from mergewise.report.tables import text
from mergewise.report.text import clean

if TYPE_CHECKING:
    from mergewise.evidence import Evaluation

WIDTH = 100
_NAME, _COLUMN = 34, 18


def table(evaluation: Evaluation, width: int = WIDTH) -> list[RenderableType]:
    """Tables for the screen, with notes on what is refused.

    The best of each column is bold, among the models that are neither base nor expert if there
    are any. Columns that do not fit beside one another follow in a further table.

    Args:
        width: columns of the screen.
    """
    measures = Measures(evaluation)
    rows = list(names(measures).values())
    made: list[RenderableType] = []
    for columns in (_scores(measures), _summary(measures)):
        for portion in _portions(columns, rows, width):
            made += [_drawn(portion, rows), ""]
    return made + [text(f"{MISSING} {note}", "dim") for note in measures.notes]


def names(measures: Measures) -> dict[str, str]:
    """Every model with its part in the comparison."""
    evaluation = measures.evaluation
    experts = set(evaluation.experts.values())
    roles = {
        model: "base" if model == evaluation.base else "expert" if model in experts else ""
        for model in evaluation.scores
    }
    # a model called "base" needs no explanation
    return {m: f"{m} ({r})" if r and r != m else m for m, r in roles.items()}


def candidates(measures: Measures) -> set[str]:
    """Models among which the best is looked for: the merged ones, or all if there are none."""
    evaluation = measures.evaluation
    given = {evaluation.base, *evaluation.experts.values()}
    return set(evaluation.scores) - given or set(evaluation.scores)


@dataclass(frozen=True)
class _Drawn:
    """A column ready to be drawn: its heading, and a cell for every model."""

    heading: str
    cells: list[Text]

    @property
    def width(self) -> int:
        lines = [min(_COLUMN, len(line)) for line in self.heading.split("\n")]
        return max([*lines, *(len(cell) for cell in self.cells)])


def _scores(measures: Measures) -> list[_Drawn]:
    made = []
    for task in measures.tasks:
        values = {m: measures.value(m, task) for m in candidates(measures)}
        best = top(values, measures.evaluation.primary[task][1] == "max")
        cells = [_score(measures, model, task, model in best) for model in names(measures)]
        made.append(_Drawn(_heading(measures, task), cells))
    return made


def _heading(measures: Measures, task: str) -> str:
    metric, best = measures.evaluation.primary[task]
    held = "\nheld out" if task in measures.evaluation.held_out else ""
    return f"{clean(task)}\n{clean(metric)} {'↑' if best == 'max' else '↓'}{held}"


def _score(measures: Measures, model: str, task: str, best: bool) -> Text:
    if measures.score(model, task) is None:
        return text("failed", "red")
    return text(shown(measures.value(model, task)), "bold" if best else "")


def _summary(measures: Measures) -> list[_Drawn]:
    """What follows from the scores; columns that no model fills are left out."""
    found = {m: {**measures.of(m), **comparisons(measures, m)} for m in measures.evaluation.scores}
    found = {model: {**entry, "agrees": agreement(entry)} for model, entry in found.items()}
    made = []
    for column in summary_columns(measures):
        values = {model: column.value(entry) for model, entry in found.items()}
        if not column.always and all(value is None for value in values.values()):
            continue
        best = top({m: values[m] for m in candidates(measures)}, column.more)
        cells = [text(column.show(found[m]), "bold" if m in best else "") for m in found]
        made.append(_Drawn(column.heading, cells))
    return made


def _portions(columns: list[_Drawn], rows: list[str], width: int) -> Iterator[list[_Drawn]]:
    """Columns that fit beside one another."""
    room = width - min(_NAME, max(map(len, rows), default=0))
    portion: list[_Drawn] = []
    used = 0
    for column in columns:
        if portion and used + column.width + 2 > room:
            yield portion
            portion, used = [], 0
        portion.append(column)
        used += column.width + 2
    if portion:
        yield portion


def _drawn(columns: list[_Drawn], rows: list[str]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("model", overflow="fold", max_width=_NAME)
    for column in columns:
        made.add_column(
            Text(column.heading), justify="right", overflow="fold", min_width=column.width
        )
    for i, name in enumerate(rows):
        made.add_row(text(name), *(column.cells[i] for column in columns))
    return made
