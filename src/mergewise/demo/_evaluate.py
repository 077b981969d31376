"""Held-out loss and next-token accuracy of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence import LiveModel

Scores = dict[str, dict[str, float]]
"""By kind of text: ``loss`` in nats a token, ``accuracy`` between 0 and 1."""


def score_folder(folder: Path, streams: Mapping[str, Tensor], context: int, most: int) -> Scores:
    """Load the model in `folder` in float32 and score it on each stream of token ids."""
    from mergewise.evidence import open_model

    model = open_model(folder, dtype="float32")
    return {name: _score(model, stream[:most], context) for name, stream in streams.items()}


def _score(model: LiveModel, stream: Tensor, context: int) -> dict[str, float]:
    from mergewise.evidence.evaluators import Span, score_spans

    # windows overlap by one token, so that every token but the first is predicted exactly once
    windows = stream.unfold(0, context + 1, context).tolist()
    found = score_spans(model, [Span(ids, 1) for ids in windows], 16)
    count = sum(each.tokens for each in found)
    return {
        "loss": sum(each.nats for each in found) / count,
        "accuracy": sum(each.hits for each in found) / count,
    }
