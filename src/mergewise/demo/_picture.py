"""The demo's picture: for every model a row, for every kind of text a mark at its loss."""

from __future__ import annotations

from mergewise.demo._settings import DOMAINS, EXPERTS
from mergewise.demo._table import Scores, value
from mergewise.report.chart import dot_rows

# the mean stands out from what it is the mean of
MEAN = ("#000000", "bar")


def picture(scores: Scores) -> str:
    """A self-contained SVG; models are ordered by mean loss, best first."""
    order = sorted(scores, key=lambda name: value(scores[name], "mean", "loss"))
    rows = [
        (
            f"{name} expert" if name in EXPERTS else name,
            {kind: value(scores[name], kind, "loss") for kind in (*DOMAINS, "mean")},
        )
        for name in order
    ]
    title = "Held-out loss of the demo's models"
    return dot_rows(title, rows, "nats a token (left is better)", marks={"mean": MEAN})
