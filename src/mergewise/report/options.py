"""Parameters of anything, as plain values and as part of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergewise.methods import Param


def option_dict(param: Param) -> dict[str, Any]:
    """One parameter, ready for JSON."""
    return {
        "type": param.kind.__name__,
        "required": param.required,
        "default": None if param.required else param.default,
        "allowed": param.range,
        "help": param.help,
    }


def explained(
    title: str, formula: str, rows: Sequence[tuple[str, str]], params: Mapping[str, Param]
) -> list[RenderableType]:
    """The page of a guide or a transform: title, formula, facts, settings."""
    lines = Text("\n").join(text(line) for line in formula.splitlines())
    headers = ["setting", "type", "default", "allowed", "meaning"]
    settings = [
        [n, p.kind.__name__, "required" if p.required else show_value(p.default), p.range, p.help]
        for n, p in params.items()
    ]
    page: list[RenderableType] = [text(title, "bold"), indented(lines), indented(facts(rows))]
    return [*page, text("Settings", "bold"), indented(table(headers, settings))]
