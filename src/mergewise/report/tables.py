"""Plain tables and paragraphs, built so that nothing in them is taken for markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mergewise.report.text import clean


def text(words: str, style: str = "") -> Text:
    """Words from anywhere, made harmless."""
    return Text(clean(words), style=style)


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[str] = ()
) -> Table:
    """A table without lines; what is too long is continued below, never cut.

    Args:
        headers: of the columns; empty ones make a table without a head.
        rows: cells as text.
        numbers: headers of columns to be aligned right.
    """
    made = Table(box=None, show_header=any(headers), pad_edge=False, header_style="bold")
    right = set(numbers)
    for header in headers:
        made.add_column(header, overflow="fold", justify="right" if header in right else "left")
    for row in rows:
        made.add_row(*(text(cell) for cell in row))
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, two columns."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(text(name), text(value))
    return made


def indented(content: RenderableType) -> Padding:
    """`content` two spaces to the right, with a blank line after it."""
    return Padding(content, (0, 0, 1, 2), expand=False)
