"""The columns of the table of what follows from scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mergewise.report._measures import Measures
from mergewise.report.text import clean

MISSING = "–"
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One number of a model.

    Attributes:
        heading: one or two lines.
        at: the keys under which it lies in `Measures.of` and `comparisons`.
        more: whether more of it is better.
        always: shown even if no model has it, so that its absence is seen.
        count: shown as a whole number.
        task: keys of the name of the task that the number comes from.
    """

    heading: str
    at: tuple[str, ...]
    more: bool = True
    always: bool = False
    count: bool = False
    task: tuple[str, ...] = ()

    def value(self, entry: Entry) -> float | None:
        """The number, None if there is none."""
        found = _look(entry, self.at)
        return None if found is None else float(found)

    def show(self, entry: Entry) -> str:
        """The cell."""
        value = self.value(entry)
        words = f"{value:.0f}" if self.count and value is not None else shown(value)
        where = _look(entry, self.task) if self.task and value is not None else None
        return words if where is None else f"{words} {clean(str(where))}"


def summary_columns(measures: Measures) -> list[Column]:
    """Columns in their order; those without any value are left out later."""
    best = {name: side == "max" for name, side in measures.evaluation.primary.values()}
    several = measures.metric is None
    means = [
        Column(f"mean\n{clean(metric)}", ("means", metric), more, always=not several)
        for metric, more in best.items()
    ]
    unseen = [
        Column(f"held out\n{clean(metric)}", ("held_out", metric), more)
        for metric, more in best.items()
    ]
    worst = "normalised" if measures.compared else ""
    given = (worst,) if worst else ()
    worst_heading = f"{worst}\nworst".strip()
    return [
        *means,
        Column("normalised\nmean", ("normalised", "mean"), always=True),
        Column(worst_heading, (*given, "worst", "value"),
               all(best.values()) or bool(worst), task=(*given, "worst", "task")),
        Column("NAI\nmean", ("nai", "mean")),
        *([] if several else [Column("forgetting\nbase", ("forgetting", "mean"), more=False)]),
        Column("below\nbase", ("forgetting", "below_base"), more=False, count=True),
        *unseen,
        Column("neg. flips\nexperts", ("negative_flips", "expert", "mean"), more=False),
        Column("neg. flips\nbase", ("negative_flips", "base", "mean"), more=False),
        Column("agreement\nexperts", ("agrees",)),
    ]  # fmt: skip


def agreement(entry: Entry) -> float | None:
    """Mean agreement with the experts on their own tasks."""
    parts = [part for part in entry["agreement"].values() if part]
    if any(value is None for part in parts for value in part["by_task"].values()):
        return None
    known = [part["own"] for part in parts if part["own"] is not None]
    return fmean(known) if known else None


def shown(value: float | None) -> str:
    """A score in a cell."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def top(values: Mapping[str, float | None], more_is_better: bool) -> set[str]:
    """Who has the best value as it is shown; nobody where only one is compared."""
    known = {model: value for model, value in values.items() if value is not None}
    if len(known) < 2:
        return set()
    choose: Callable[..., float] = max if more_is_better else min
    best = shown(choose(known.values()))
    return {model for model, value in known.items() if shown(value) == best}


def _look(entry: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry
