"""The demo's picture: for every model a row, for every kind of text a dot at its loss."""

from __future__ import annotations

from html import escape
from math import ceil, floor

from mergewise.demo._settings import DOMAINS, EXPERTS
from mergewise.demo._table import Scores, value

COLOURS = {"maths": "#0072b2", "code": "#d55e00", "prose": "#009e73", "mean": "#000000"}
LEFT, WIDTH, TOP, ROW = 150, 520, 70, 26


def picture(scores: Scores) -> str:
    """A self-contained SVG; models are ordered by mean loss, best first."""
    order = sorted(scores, key=lambda name: value(scores[name], "mean", "loss"))
    losses = [value(scores[name], kind, "loss") for name in order for kind in DOMAINS]
    low, high = floor(min(losses) * 2) / 2, ceil(max(losses) * 2) / 2 + 0.01

    def x(loss: float) -> float:
        return LEFT + WIDTH * (loss - low) / (high - low)

    height = TOP + ROW * len(order) + 20
    body = [*_legend(), *_grid(low, high, x(low + 0.5) - x(low), height)]
    for i, name in enumerate(order):
        body += _row(name, [(k, x(value(scores[name], k, "loss"))) for k in COLOURS], TOP + ROW * i)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {height}" '
        'font-family="sans-serif" font-size="13">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _legend() -> list[str]:
    title = "Held-out loss in nats a token (left is better)"
    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{title}</text>']
    for i, (kind, colour) in enumerate(COLOURS.items()):
        parts.append(_mark(kind, LEFT + 6 + 90 * i, 36))
        parts.append(f'<text x="{LEFT + 18 + 90 * i}" y="41" fill="{colour}">{kind}</text>')
    return parts


def _grid(low: float, high: float, step: float, height: int) -> list[str]:
    parts = []
    for i in range(int((high - low) * 2) + 1):
        at = LEFT + step * i
        parts.append(f'<path d="M{at:.1f} {TOP - 10}V{height - 20}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{height - 5}" text-anchor="middle" fill="#666">'
            f"{low + i / 2:g}</text>"
        )
    return parts


def _row(name: str, marks: list[tuple[str, float]], y: int) -> list[str]:
    label = f"{name} expert" if name in EXPERTS else name
    xs = [at for _, at in marks]
    return [
        f'<text x="{LEFT - 12}" y="{y + 5}" text-anchor="end">{escape(label)}</text>',
        f'<path d="M{min(xs):.1f} {y}H{max(xs):.1f}" stroke="#999"/>',
        *(_mark(kind, at, y) for kind, at in marks),
    ]


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "mean":
        return f'<path d="M{x:.1f} {y - 7}v14" stroke="{COLOURS[kind]}" stroke-width="3"/>'
    return f'<circle cx="{x:.1f}" cy="{y}" r="5.5" fill="{COLOURS[kind]}"/>'
