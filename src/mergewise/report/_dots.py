"""Rows of dots with error bars on one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mergewise.report._heat import is_number
from mergewise.report._svg import (
    GREY,
    PALETTE,
    ROW,
    SHAPES,
    SIZE,
    Panel,
    label,
    mark,
    text_width,
    ticks,
)

Spread = tuple[float, float, float]
Dot = float | Spread | None
Marks = Mapping[str, tuple[str, str]]

_FOOT = 40


def dot_panel(
    rows: Sequence[Mapping[str, Dot]],
    axis: str,
    format: str = "g",
    marks: Marks | None = None,
    lines: Mapping[str, float] | None = None,
    width: float = 520,
    least: float | None = None,
) -> Panel:
    """The axis with its dots, without the rows' names; see `chart.dot_rows`."""
    lines = {name: value for name, value in (lines or {}).items() if is_number(value)}
    dots = [{name: _spread(value) for name, value in row.items()} for row in rows]
    series = _styles(dots, marks or {})
    dots, below = _cut(dots, least)
    numbers = [n for row in dots for spread in row.values() if spread for n in spread]
    numbers += lines.values()
    at = ticks(min(numbers, default=0.0), max(numbers, default=1.0))
    x = _axis(at, width)
    legend, top = _legend(series, lines, width)
    bottom = top + ROW * len(rows)
    parts = [*legend, *_grid(at, x, top, bottom, format)]
    parts += [_dashed(x(value), top, bottom, i) for i, value in enumerate(lines.values())]
    for i, row in enumerate(dots):
        parts += _off(below[i], row, series, x, top + ROW * (i + 0.5), format)
        parts += _row(row, series, x, top + ROW * (i + 0.5))
    words = text_width(axis, SIZE - 1)
    parts.append(label(max(width, words) / 2, bottom + 34, axis, anchor="middle", fill=GREY,
                       size=SIZE - 1))  # fmt: skip
    return Panel(max(width, words), bottom + _FOOT, tuple(parts), top)


def _spread(value: Dot) -> Spread | None:
    """Mean, low and high; None unless all are finite."""
    triple = value if isinstance(value, tuple) else (value, value, value)
    if not all(is_number(part) for part in triple):
        return None
    mean, low, high = (float(part) for part in triple)  # type: ignore[arg-type]
    return mean, low, high


def _cut(
    rows: Sequence[Mapping[str, Spread | None]], least: float | None
) -> tuple[list[dict[str, Spread | None]], list[dict[str, float]]]:
    """What is on an axis that begins at `least`, error bars cut there, and the means below it."""
    on: list[dict[str, Spread | None]] = [{} for _ in rows]
    below: list[dict[str, float]] = [{} for _ in rows]
    for i, row in enumerate(rows):
        for name, spread in row.items():
            if spread and least is not None and spread[0] < least:
                below[i][name] = spread[0]
            else:
                on[i][name] = spread and (spread[0], max(spread[1], least or spread[1]), spread[2])
    return on, below


def _styles(
    rows: Sequence[Mapping[str, Spread | None]], marks: Marks
) -> dict[str, tuple[str, str]]:
    """Colour and shape of every series, in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    free = (
        (PALETTE[i % len(PALETTE)], SHAPES[i % len(SHAPES)]) for i in range(len(names) + len(marks))
    )
    return {name: marks[name] if name in marks else next(free) for name in names}


def _axis(at: Sequence[float], width: float) -> Callable[[float], float]:
    edge = 16.0
    return lambda value: edge + (width - 2 * edge) * (value - at[0]) / (at[-1] - at[0])


def _legend(
    series: Mapping[str, tuple[str, str]], lines: Mapping[str, float], width: float
) -> tuple[list[str], float]:
    """Names with their marks, in as many lines as they need; and the height they take."""
    parts: list[str] = []
    x, y = 8.0, 8.0
    for i, name in enumerate([*series, *lines]):
        long = text_width(name) + 32
        if x > 8 and x + long > width:
            x, y = 8.0, y + 20
        if name in series:
            parts.append(mark(series[name][1], x, y, series[name][0]))
        else:
            parts.append(_dashed(x, y - 8, y + 8, i - len(series)))
        parts.append(label(x + 11, y + 4.5, name))
        x += long
    return parts, y + 22


def _grid(
    at: Sequence[float], x: Callable[[float], float], top: float, bottom: float, format: str
) -> list[str]:
    parts = []
    for value in at:
        parts.append(f'<path d="M{x(value):.1f} {top:.1f}V{bottom:.1f}" stroke="#dddddd"/>')
        words = f"{value:{format}}".replace("-", "−")
        parts.append(label(x(value), bottom + 16, words, anchor="middle", fill=GREY, size=SIZE - 1))
    return parts


def _dashed(x: float, top: float, bottom: float, which: int) -> str:
    dash = ("5 3", "2 3", "8 3 2 3")[which % 3]
    return (
        f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="#444444" stroke-width="1.5" '
        f'stroke-dasharray="{dash}"/>'
    )


def _row(
    row: Mapping[str, Spread | None],
    series: Mapping[str, tuple[str, str]],
    x: Callable[[float], float],
    y: float,
) -> list[str]:
    drawn = {name: spread for name, spread in row.items() if spread}
    if not drawn:
        return []
    means = [x(mean) for mean, _, _ in drawn.values()]
    parts = [f'<path d="M{min(means):.1f} {y:.1f}H{max(means):.1f}" stroke="#bbbbbb"/>']
    barred = [name for name, (_, low, high) in drawn.items() if low < high]
    for name, (mean, low, high) in drawn.items():
        colour, shape = series[name]
        at = y
        if len(barred) > 1 and name in barred:
            # on the same height they would hide one another
            at += 8 * (barred.index(name) / (len(barred) - 1) - 0.5)
        if low < high:
            parts.append(_error_bar(x(low), x(high), at, colour))
        parts.append(mark(shape, x(mean), at, colour))
    return parts


def _off(
    below: Mapping[str, float],
    row: Mapping[str, Spread | None],
    series: Mapping[str, tuple[str, str]],
    x: Callable[[float], float],
    y: float,
    format: str,
) -> list[str]:
    """Arrows out of the axis, with the numbers that lie there."""
    parts, left = [], 4.0
    for name, mean in below.items():
        words = f"◂ {mean:.0f}" if format == "g" else f"◂ {mean:{format}}"
        parts.append(
            label(left, y + 4, words.replace("-", "−"), fill=series[name][0], size=SIZE - 1)
        )
        left += text_width(words, SIZE - 1) + 6
    means = [spread[0] for spread in row.values() if spread]
    if below and means and x(min(means)) > left:
        parts.insert(0, f'<path d="M{left:.1f} {y:.1f}H{x(min(means)):.1f}" stroke="#bbbbbb"/>')
    return parts


def _error_bar(low: float, high: float, y: float, colour: str) -> str:
    return (
        f'<path d="M{low:.1f} {y - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8" stroke="{colour}" '
        'stroke-width="1.5" fill="none"/>'
    )
