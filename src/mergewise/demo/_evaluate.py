"""Held-out loss and next-token accuracy of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Scores = dict[str, dict[str, float]]
"""By kind of text: ``loss`` in nats a token, ``accuracy`` between 0 and 1."""


def score_folder(folder: Path, streams: Mapping[str, Tensor], context: int, most: int) -> Scores:
    """Load the model in `folder` in float32 and score it on each stream of token ids."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {name: _score(model, stream[:most], context) for name, stream in streams.items()}


def _score(model: Any, stream: Tensor, context: int) -> dict[str, float]:
    import torch

    # Windows overlap by one token, so that every token but the first is predicted exactly once.
    windows = stream.unfold(0, context + 1, context)
    loss = hits = 0.0
    with torch.inference_mode():
        for batch in torch.split(windows, 16):
            logits = model(batch[:, :-1]).logits
            targets = batch[:, 1:]
            loss += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), reduction="sum"
                )
            )
            hits += float((logits.argmax(-1) == targets).sum())
    count = windows.shape[0] * context
    return {"loss": loss / count, "accuracy": hits / count}
