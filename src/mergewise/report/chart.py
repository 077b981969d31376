"""Charts as self-contained SVG text: a heat map, and rows of dots with error bars.

Colours are safe for colour-blind readers, and series differ in shape as well. A value that is
None or not finite is drawn as missing; text in a value's place is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mergewise.report._dots import Dot, Marks, Spread, dot_panel
from mergewise.report._heat import Cell, heat_panel, name_panel
from mergewise.report._svg import PALETTE, SHAPES, beside, document

__all__ = ["PALETTE", "SHAPES", "Cell", "Dot", "Marks", "Spread", "dot_rows", "heat_map"]


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Cell]],
    notes: Iterable[str] = (),
    format: str = ".3f",
    shades: Sequence[Sequence[Cell]] | None = None,
    centre: float | None = None,
) -> str:
    """A table of numbers on coloured ground.

    Args:
        values: one row for each of `rows`, one value for each of `columns`.
        notes: lines below the picture.
        format: how numbers are written, as Python's format specification.
        shades: numbers that set the colours instead of `values`, of the same shape.
        centre: the value that is neither good nor bad; colours then go from orange (below) to
            blue (above), without it from light (low) to dark (high).

    Raises:
        ValueError: if the shapes do not agree.
    """
    cells = heat_panel(rows, columns, values, format, shades, centre)
    return document(title, beside([name_panel(rows), cells]), notes)


def dot_rows(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, Dot]]],
    axis: str,
    notes: Iterable[str] = (),
    format: str = "g",
    marks: Marks | None = None,
    lines: Mapping[str, float] | None = None,
    least: float | None = None,
) -> str:
    """For every row a mark for each series, all on one axis.

    Args:
        rows: names, each with its values by series: a number, or (mean, low, high), which is
            drawn with an error bar.
        axis: what the axis measures, and which side is better.
        notes: lines below the picture.
        format: how the axis' numbers are written.
        marks: colour and shape (one of `SHAPES`) of some series; the others take the next free.
        lines: named dashed lines at fixed values, such as the base model's score.
        least: where the axis begins at the latest; a mean below is an arrow with its number, so
            that one bad value does not press all others together.
    """
    dots = dot_panel([values for _, values in rows], axis, format, marks, lines, least=least)
    return document(title, beside([name_panel([name for name, _ in rows]), dots]), notes)
