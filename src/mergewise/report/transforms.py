"""What there is to know about a transform, from its declaration; and what one did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from mergewise.report.options import option_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from mergewise.transforms import Transform, Transformed


def transforms_list(transforms: Iterable[Transform]) -> list[RenderableType]:
    """One row for each transform."""
    rows = [[t.name, t.summary, t.data, t.models or "none"] for t in transforms]
    return [table(["transform", "what it changes", "data", "further models"], rows)]


def transform_page(transform: Transform) -> list[RenderableType]:
    """One transform: formula, needs, settings, source."""
    rows = [("data", transform.data), ("further models", transform.models or "none")]
    rows.append(("source", transform.source))
    if transform.variant:
        rows.append(("variant", transform.variant))
    page: list[RenderableType] = [text(f"{transform.name}: {transform.summary}", "bold")]
    formula = Text("\n").join(text(line) for line in transform.describe().splitlines())
    page += [indented(formula), indented(facts(rows))]
    headers = ["setting", "type", "default", "allowed", "meaning"]
    settings = [
        [n, p.kind.__name__, "required" if p.required else show_value(p.default), p.range, p.help]
        for n, p in transform.params.items()
    ]
    return [*page, text("Settings", "bold"), indented(table(headers, settings))]


def transform_dict(transform: Transform) -> dict[str, Any]:
    """One transform as plain values, ready for JSON."""
    return {
        "name": transform.name,
        "summary": transform.summary,
        "formula": transform.describe(),
        "data": transform.data,
        "models": transform.models,
        "source": transform.source,
        "variant": transform.variant,
        "settings": {name: option_dict(param) for name, param in transform.params.items()},
    }


def transformed_dict(done: Transformed) -> dict[str, Any]:
    """What a transform did, ready for JSON."""
    return {
        "out": str(done.out),
        "files": list(done.files),
        "changed": list(done.changed),
        "notes": list(done.notes),
        "warnings": list(done.warnings),
        "measured": dict(done.numbers),
    }
