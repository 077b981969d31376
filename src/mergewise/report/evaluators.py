"""What there is to know about a kind of evaluation task, from its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.report.options import option_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from mergewise.evidence import Evaluator
    from mergewise.methods import Param

_COMMON = [
    ["name", "unique in the file; the task's column in tables"],
    ["kind", "one of the kinds that `mergewise evaluate --list` lists"],
    ["data", "a path, a list of records, or either by split: {validation: …, test: …}; instead "
             "of a path also {path, rows: [from, to], split, columns, separator}"],
    ["head", "the task's own classification head, a safetensors file"],
    ["expert", "name of the model that is this task's reference; by default that of the same name"],
    ["held_out", "true if no expert was trained on it"],
    ["limit", "score at most so many rows"],
]  # fmt: skip


def evaluators_list(evaluators: Iterable[type[Evaluator]]) -> list[RenderableType]:
    """One row for each kind."""
    rows = [[e.name, e.summary, ", ".join(e.metrics), e.fields] for e in evaluators]
    return [table(["kind", "what it measures", "metrics", "reads"], rows)]


def evaluator_page(evaluator: type[Evaluator]) -> list[RenderableType]:
    """One kind: fields, metrics, options, example."""
    title = text(f"{evaluator.name}: {evaluator.summary}", "bold")
    page: list[RenderableType] = [title]
    if evaluator.fields:
        page.append(indented(facts([("reads", evaluator.fields)])))
    if evaluator.metrics:
        page += [text("Metrics, the primary one first", "bold"), indented(_metrics(evaluator))]
    if evaluator.params:
        headers = ["option", "type", "default", "allowed", "meaning"]
        rows = [_option(name, param) for name, param in evaluator.params.items()]
        page += [text("Options", "bold"), indented(table(headers, rows))]
    common = [row for row in _COMMON if row[0] not in evaluator.params]
    page += [text("Options of every kind", "bold"), indented(table(["", ""], common))]
    if evaluator.example:
        page += [text("Example", "bold")]
        page += [text(f"  {line}") for line in evaluator.example.strip().splitlines()]
    return page


def _metrics(evaluator: type[Evaluator]) -> RenderableType:
    words = {"max": "more is better", "min": "less is better"}
    rows = [[name, words[m.best], m.help] for name, m in evaluator.metrics.items()]
    return table(["metric", "", "meaning"], rows)


def _option(name: str, param: Param) -> list[str]:
    default = "required" if param.required else show_value(param.default)
    return [name, param.kind.__name__, default, param.range, param.help]


def evaluator_dict(evaluator: type[Evaluator]) -> dict[str, Any]:
    """One kind as plain values, ready for JSON."""
    return {
        "kind": evaluator.name,
        "summary": evaluator.summary,
        "fields": evaluator.fields,
        "version": evaluator.version,
        "metrics": {
            name: {"best": metric.best, "help": metric.help}
            for name, metric in evaluator.metrics.items()
        },
        "options": {name: option_dict(param) for name, param in evaluator.params.items()},
        "example": evaluator.example.strip(),
    }
