"""What there is to know about a statistic, from its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.report.options import option_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from mergewise.evidence.statistics import Statistic

_NEEDS = {
    "forward": "forward passes",
    "gradients": "a backward pass for each example",
    "file": "no pass; read from a file",
}


def statistics_list(statistics: Iterable[Statistic]) -> list[RenderableType]:
    """One row for each statistic."""
    rows = [[s.name, s.summary, s.data, _NEEDS[s.need]] for s in statistics]
    return [table(["statistic", "what it holds", "data", "needs"], rows)]


def statistic_page(statistic: Statistic) -> list[RenderableType]:
    """One statistic: formula, sums, options, source."""
    rows = [("needs", _NEEDS[statistic.need]), ("data", statistic.data)]
    if statistic.source:
        rows.append(("source", statistic.source))
    page: list[RenderableType] = [
        text(f"{statistic.name}: {statistic.summary}", "bold"),
        indented(text(statistic.describe())),
        indented(facts(rows)),
        text("Sums", "bold"),
        indented(table(["sum", "meaning"], list(statistic.sums.items()))),
    ]
    if statistic.params:
        headers = ["option", "type", "default", "allowed", "meaning"]
        options = [
            [
                n,
                p.kind.__name__,
                "required" if p.required else show_value(p.default),
                p.range,
                p.help,
            ]
            for n, p in statistic.params.items()
        ]
        page += [text("Options", "bold"), indented(table(headers, options))]
    return page


def statistic_dict(statistic: Statistic) -> dict[str, Any]:
    """One statistic as plain values, ready for JSON."""
    return {
        "name": statistic.name,
        "summary": statistic.summary,
        "formula": statistic.describe(),
        "sums": dict(statistic.sums),
        "need": statistic.need,
        "data": statistic.data,
        "two_models": statistic.two_models,
        "source": statistic.source,
        "options": {name: option_dict(param) for name, param in statistic.params.items()},
    }
