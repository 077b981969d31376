"""Coloured cells with numbers, and the names beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from mergewise.report._svg import (
    GREY,
    ROW,
    SIZE,
    Panel,
    between,
    ink,
    label,
    safe,
    shorten,
    text_width,
)

Cell = float | str | None

NAME = 240
_LIGHT, _MIDDLE, _DARK = "#f7fbff", "#6baed6", "#08306b"
_WORSE, _EVEN, _BETTER = "#b35806", "#f7f7f7", "#2b5c9e"
_VOID = "#ececec"
_TURN = 35.0


@dataclass(frozen=True)
class Scale:
    """From values to colours: light to dark, or around `centre` from orange through white to blue.

    Attributes:
        low: the value that gets the first colour; values below it get the same.
        high: the value that gets the last.
    """

    low: float
    high: float
    centre: float | None = None

    @classmethod
    def of(cls, values: Iterable[Cell], centre: float | None = None) -> Scale:
        """The scale that just holds all numbers among `values`."""
        numbers = [float(v) for v in values if is_number(v)]  # type: ignore[arg-type]
        numbers += [] if centre is None else [centre]
        return cls(min(numbers, default=0.0), max(numbers, default=1.0), centre)

    def colour(self, value: float) -> str:
        """The colour of a value, ``#rrggbb``."""
        if self.centre is None:
            share = 2 * _share(value, self.low, self.high)
            half = (_LIGHT, _MIDDLE) if share < 1 else (_MIDDLE, _DARK)
            return between(*half, share % 1 if share < 2 else 1.0)
        # a unit is the same amount of colour on both sides
        reach = max(self.high - self.centre, self.centre - self.low)
        away = _share(abs(value - self.centre), 0.0, reach) if reach > 0 else 0.0
        return between(_EVEN, _BETTER if value >= self.centre else _WORSE, away)


def is_number(value: object) -> bool:
    """Whether a value can be drawn: a finite number."""
    return isinstance(value, Real) and math.isfinite(value)


def name_panel(rows: Sequence[str]) -> Panel:
    """The rows' names, aligned to the right; long ones without their middle."""
    width = min(NAME, max((text_width(name) for name in rows), default=0.0))
    parts = [
        label(width, ROW * (i + 0.5) + 4.5, shorten(name, NAME), anchor="end", full=name)
        for i, name in enumerate(rows)
    ]
    return Panel(width, ROW * len(rows), tuple(parts))


def heat_panel(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Cell]],
    format: str = ".3f",
    shades: Sequence[Sequence[Cell]] | None = None,
    centre: float | None = None,
    scale: Scale | None = None,
) -> Panel:
    """The coloured cells with the columns' names above; see `chart.heat_map`.

    Args:
        scale: of the colours; by default the one that just holds the shades.
    """
    shades = values if shades is None else shades
    for matrix in (values, shades):
        if len(matrix) != len(rows) or any(len(row) != len(columns) for row in matrix):
            raise ValueError(f"values for {len(rows)} rows and {len(columns)} columns expected")
    scale = scale or Scale.of((value for row in shades for value in row), centre)
    texts = [[_written(value, format) for value in row] for row in values]
    cell = max([52.0, *(text_width(text) + 14 for row in texts for text in row)])
    head, overhang, top = _column_names(columns, cell)
    parts = list(head)
    for i, name in enumerate(rows):
        for j, column in enumerate(columns):
            colour = _VOID
            if is_number(shades[i][j]):
                colour = scale.colour(float(shades[i][j]))  # type: ignore[arg-type]
            hint = f"{name}, {column}: {texts[i][j]}"
            parts += _cell(cell * j, top + ROW * i, cell, texts[i][j], colour, hint)
    return Panel(cell * len(columns) + overhang, top + ROW * len(rows), tuple(parts), top)


def _column_names(columns: Sequence[str], cell: float) -> tuple[list[str], float, float]:
    """The labels, how far they reach beyond the last cell, and their height."""
    limit = 150.0
    short = [shorten(name, limit) for name in columns]
    if all(text_width(name) <= cell - 6 for name in short):
        level = [label(cell * (j + 0.5), 14, name, anchor="middle") for j, name in enumerate(short)]
        return level, 0.0, 22.0
    widest = max(text_width(name) for name in short)
    height = widest * math.sin(math.radians(_TURN)) + 20
    parts = [
        label(cell * (j + 0.5), height - 6, name, turn=-_TURN, full=columns[j])
        for j, name in enumerate(short)
    ]
    reach = max(
        cell * (j + 0.5) + text_width(name) * math.cos(math.radians(_TURN)) + 6
        for j, name in enumerate(short)
    )
    return parts, max(0.0, reach - cell * len(columns)), height


def _cell(x: float, y: float, width: float, text: str, colour: str, hint: str) -> list[str]:
    fill = GREY if colour == _VOID else ink(colour)
    return [
        f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{width - 1:.1f}" height="{ROW - 1}" '
        f'fill="{colour}"><title>{safe(hint)}</title></rect>',
        label(x + width / 2, y + ROW / 2 + 4.5, text, anchor="middle", fill=fill, size=SIZE - 1),
    ]


def _written(value: Cell, format: str) -> str:
    if isinstance(value, str):
        return value
    if not is_number(value):
        return "–"
    return f"{value:{format}}".replace("-", "−")


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
