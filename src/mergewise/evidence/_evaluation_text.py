"""An evaluation in plain text: a line for each task, a column for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergewise.evidence._evaluation import Evaluation

_WIDEST = 28
_MISSING = "–"


def as_text(evaluation: Evaluation) -> str:
    """The primary metric of every model on every task; – where it failed."""
    models = list(evaluation.scores)
    lines = [["task", "metric", *models]]
    for task, (metric, best) in evaluation.primary.items():
        arrow = "↑" if best == "max" else "↓"
        values = [_number(evaluation.value(model, task)) for model in models]
        lines.append([task, f"{metric} {arrow}", *values])
    cells = [[_shortened(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([f"Evaluation, split {_shortened(evaluation.split)}", *_drawn(cells, widths)])


def _drawn(cells: list[list[str]], widths: list[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    return [
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _shortened(name: str) -> str:
    """On one line; of a long name, such as a path, the end."""
    shown = "".join(c if c.isprintable() else "�" for c in name)
    return shown if len(shown) <= _WIDEST else "…" + shown[1 - _WIDEST :]
