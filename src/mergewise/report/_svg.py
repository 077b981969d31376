"""What charts are drawn with: panels of SVG text, harmless labels, ticks, marks and colours.

A panel is a list of SVG elements with a size and the height of its first row, so that panels
with equal rows can be set side by side. Nothing here has a dependency, and nothing a label holds
can become markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import east_asian_width

from mergewise.report.text import clean

SIZE = 13
ROW = 26
GREY = "#666666"
# Okabe and Ito's palette: told apart by readers with any common colour blindness; the yellow is
# left out, since it is hard to see on white
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring", "bar", "plus")


@dataclass(frozen=True)
class Panel:
    """Part of a chart, drawn from (0, 0); all lengths in SVG units.

    Attributes:
        top: the y at which the first row begins.
    """

    width: float
    height: float
    parts: tuple[str, ...]
    top: float = 0.0

    def at(self, x: float, y: float) -> list[str]:
        """The panel's elements, moved."""
        return [f'<g transform="translate({x:g} {y:g})">', *self.parts, "</g>"]


def beside(panels: Sequence[Panel], gap: float = 16) -> Panel:
    """Panels from left to right, their first rows on one line."""
    top = max(panel.top for panel in panels)
    parts: list[str] = []
    x = bottom = 0.0
    for panel in panels:
        parts += panel.at(x, top - panel.top)
        x += panel.width + gap
        bottom = max(bottom, top - panel.top + panel.height)
    return Panel(x - gap, bottom, tuple(parts), top)


def below(panels: Sequence[Panel], gap: float = 22) -> Panel:
    """Panels from top to bottom."""
    parts: list[str] = []
    y = 0.0
    for panel in panels:
        parts += panel.at(0, y)
        y += panel.height + gap
    return Panel(max(panel.width for panel in panels), y - gap, tuple(parts))


def document(title: str, panel: Panel, notes: Iterable[str] = ()) -> str:
    """A whole SVG file: the title, the panel, and notes below it."""
    pad = 14
    lines = [line for note in notes for line in wrap(note, max(panel.width, 420), SIZE - 2)]
    asked = [
        text_width(title, SIZE + 2, bold=True),
        *(text_width(line, SIZE - 2) for line in lines),
    ]
    width = max(panel.width, *asked) + 2 * pad
    below = pad + 30 + panel.height
    height = below + 16 * len(lines) + pad
    body = [
        label(pad, pad + 14, title, size=SIZE + 2, bold=True),
        *panel.at(pad, pad + 30),
        *(label(pad, below + 14 + 16 * i, line, size=SIZE - 2, fill=GREY)
          for i, line in enumerate(lines)),
    ]  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" '
        f'font-size="{SIZE}" role="img">\n<title>{safe(title)}</title>\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def safe(words: str) -> str:
    """Text for an SVG file: markup and characters that XML forbids are written out."""
    return escape(clean(words))


def label(
    x: float, y: float, words: str, *, anchor: str = "start", size: float = SIZE,
    fill: str = "#000000", bold: bool = False, turn: float = 0, full: str | None = None,
) -> str:  # fmt: skip
    """A text element; `full` is what a pointer resting on it shows."""
    style = ' font-weight="bold"' if bold else ""
    style += f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    hint = f"<title>{safe(full)}</title>" if full is not None and full != words else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" '
        f'fill="{fill}"{style}>{hint}{safe(words)}</text>'
    )


def mark(shape: str, x: float, y: float, colour: str) -> str:
    """One of `SHAPES`, about eleven units wide, centred on (x, y)."""
    outline = f'stroke="{colour}" stroke-width="2.5" fill="none"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    if shape == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {outline}/>'
    path, filled = {
        "square": ("m-4.5 -4.5h9v9h-9z", True),
        "diamond": ("m0 -6.5l6 6.5l-6 6.5l-6 -6.5z", True),
        "triangle": ("m0 -6l6 11h-12z", True),
        "cross": ("m-4.5 -4.5l9 9m0 -9l-9 9", False),
        "plus": ("m-6 0h12m-6 -6v12", False),
        "bar": ("m0 -7v14", False),
    }[shape]
    style = f'fill="{colour}"' if filled else outline
    return f'<path d="M{x:.1f} {y:.1f}{path}" {style}/>'


def text_width(words: str, size: float = SIZE, bold: bool = False) -> float:
    """About how wide a text is in a common sans-serif font; rather a little too wide."""
    return sum(_advance(c) for c in clean(words)) * size * (1.1 if bold else 1.0)


def _advance(character: str) -> float:
    if east_asian_width(character) in "WF":
        return 1.0
    if character in " ijltfrI.,:;'|!()[]-":
        return 0.38
    return 0.85 if character in "mwMW@%" else 0.7 if character.isupper() else 0.62


def shorten(words: str, width: float, size: float = SIZE) -> str:
    """`words`, its middle left out if it is wider than `width`: both ends tell names apart."""
    if text_width(words, size) <= width:
        return words
    keep = len(words)
    while keep > 2:
        keep -= 1
        cut = f"{words[: (keep + 1) // 2]}…{words[len(words) - keep // 2 :]}"
        if text_width(cut, size) <= width:
            return cut
    return "…"


def wrap(words: str, width: float, size: float = SIZE) -> list[str]:
    """Lines no wider than `width` where spaces allow it."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough * 0.9999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def between(low: str, high: str, share: float) -> str:
    """The colour at `share` (0 to 1) of the way from one ``#rrggbb`` to another."""
    pairs = ((int(low[i : i + 2], 16), int(high[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def ink(background: str) -> str:
    """Black or white, whichever has more contrast with `background` (WCAG's luminance)."""

    def linear(part: int) -> float:
        value = part / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(background[i : i + 2], 16)) for i in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if luminance < 0.179 else "#000000"
