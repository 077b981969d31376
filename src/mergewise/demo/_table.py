"""The demo's table: one row a model, the best of each column in bold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise.demo._settings import DOMAINS, EXPERTS

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


def table(scores: Scores) -> Table:
    """Held-out loss (lower is better) and next-token accuracy (higher is better)."""
    from rich.table import Table

    result = Table(
        title="Held-out loss (nats a token, lower is better) and next-token accuracy",
        caption="best of each column in bold",
    )
    result.add_column("model")
    for kind in (*DOMAINS, "mean"):
        result.add_column(f"{kind}\nloss", justify="right")
        result.add_column("\nacc.", justify="right")
    columns = _columns(scores)
    for row, name in enumerate(scores):
        result.add_row(
            f"{name} expert" if name in EXPERTS else name,
            *(column[row] for column in columns),
            end_section=name == EXPERTS[-1],
        )
    return result


def _columns(scores: Scores) -> list[list[Text]]:
    columns = []
    for kind in (*DOMAINS, "mean"):
        losses = [value(model, kind, "loss") for model in scores.values()]
        hits = [value(model, kind, "accuracy") for model in scores.values()]
        columns.append(_cells([f"{loss:.3f}" for loss in losses], losses, min(losses)))
        columns.append(_cells([f"{hit:.1%}" for hit in hits], hits, max(hits)))
    return columns


def value(model: Mapping[str, Mapping[str, float]], kind: str, metric: str) -> float:
    """One score; the kind ``mean`` is the plain average over the kinds of text."""
    kinds = DOMAINS if kind == "mean" else (kind,)
    return sum(model[k][metric] for k in kinds) / len(kinds)


def _cells(texts: list[str], numbers: list[float], best: float) -> list[Text]:
    from rich.text import Text

    # styled text, not markup: a console may have markup switched off
    styles = ["bold" if number == best else "" for number in numbers]
    return [Text(text, style) for text, style in zip(texts, styles, strict=True)]
