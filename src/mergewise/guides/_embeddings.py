"""Embeddings of data sets by a model, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence import Data, LiveModel

if TYPE_CHECKING:
    from torch import Tensor


def direction(model: LiveModel, data: Data, options: Mapping[str, Any]) -> Tensor:
    """The mean of the examples' embeddings, each of length 1: float64 [width].

    An example's embedding is the mean of the last hidden states over its tokens. The product of
    two data sets' directions is the mean cosine over all pairs of their examples.

    Args:
        model: as a body, whose output has ``last_hidden_state`` [examples, positions, width].

    Raises:
        EvidenceError: if the model gives something else, or there is no example.
        NonFiniteError: if an embedding is not finite.
    """
    from mergewise.evidence import Feeder, Reading

    reading = Reading(
        options.get("batch_size") or 8, options.get("max_length"), options.get("template")
    )
    total, count = torch.zeros((), dtype=torch.float64), 0
    with torch.no_grad():
        for fed in Feeder(data, model, reading, whole=True):
            inputs = {name: value.to(model.device) for name, value in fed.inputs.items()}
            found = _pooled(model.module(**inputs), fed.mask, model)
            total = total + (found / found.norm(dim=1, keepdim=True)).sum(0)
            count += len(found)
    if count == 0:
        raise EvidenceError(f"{data.name}: no example to embed; its texts are empty")
    if not math.isfinite(float(total.sum())):
        raise NonFiniteError(f"{model.name}: embeddings of {data.name} are not finite")
    return total / count


def _pooled(output: Any, mask: Tensor | None, model: LiveModel) -> Tensor:
    """Means over positions, without padding: float64 [examples, width]."""
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, torch.Tensor) or states.ndim != 3:
        raise EvidenceError(
            f"{model.name}: {type(model.module).__name__} gives no hidden states [examples, "
            "positions, width]; name another model to embed with: encoder=CHECKPOINT"
        )
    states = states.double().cpu()
    if mask is None:
        return states.mean(1)
    weights = mask.to(states)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)
