"""What there is to know about a transform, from its declaration; and what one did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.report.options import explained, option_dict
from mergewise.report.tables import table

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
    title = f"{transform.name}: {transform.summary}"
    return explained(title, transform.describe(), rows, transform.params)


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
