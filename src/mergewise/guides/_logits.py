"""How far the logits of experts lie apart on each other's data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import EvidenceError, GuideError, NonFiniteError
from mergewise.guides._base import Ask
from mergewise.guides._losses import feeder, opened

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed


def logit_distances(ask: Ask) -> list[list[float]]:
    """[i][j]: mean over examples of expert j's data of ||logits of i - logits of j||.

    The Euclidean norm over classes or the vocabulary; of a text the mean over its tokens. Two
    models are in memory at a time. Zero on the diagonal.

    Raises:
        GuideError: if experts have other classes or vocabularies.
        EvidenceError: if models do not return logits.
        NonFiniteError: if a distance is NaN or infinite.
        MergewiseError: as opening and feeding models raise.
    """
    count = len(ask.experts)
    table = [[0.0] * count for _ in range(count)]
    if count < 2:
        return table
    for j, own in enumerate(ask.experts):
        data = ask.data[own.label]
        reference = opened(own.checkpoint, ask.options)
        fed = feeder(reference, data, ask.options)
        for i, other in enumerate(ask.experts):
            if i == j:
                continue
            ask.tell(f"logits of {other.label} and {own.label} on {data.name}")
            found = distance(opened(other.checkpoint, ask.options), reference, fed)
            if not found < float("inf"):
                raise NonFiniteError(f"{other.label}: its logits on {data.name} are not finite")
            table[i][j] = found
    return table


def distance(one: LiveModel, other: LiveModel, batches: Iterable[Fed]) -> float:
    """The mean over examples of the distance of two models' logits."""
    total, examples = 0.0, 0
    with torch.no_grad():
        for fed in batches:
            pair = [_logits(model, fed) for model in (one, other)]
            if pair[0].shape != pair[1].shape:
                raise GuideError(
                    f"logits of shape {list(pair[0].shape)} in {one.name} and "
                    f"{list(pair[1].shape)} in {other.name}; experts must share their classes, or "
                    "their vocabulary"
                )
            for row in range(len(pair[0])):
                total += _apart(pair[0][row], pair[1][row], fed, row)
                examples += 1
    if not examples:
        raise EvidenceError(f"no examples to compare {one.name} and {other.name} on")
    return total / examples


def _logits(model: LiveModel, fed: Fed) -> Tensor:
    inputs = {name: value.to(model.device) for name, value in fed.inputs.items()}
    output: Any = model.module(**inputs)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 3):
        raise EvidenceError(
            f"{type(model.module).__name__} does not return logits [examples, classes] or "
            "[examples, tokens, vocabulary]"
        )
    return logits


def _apart(one: Tensor, other: Tensor, fed: Fed, row: int) -> float:
    """Of one example; padding does not count."""
    each = (one.float() - other.float()).norm(dim=-1)
    if each.ndim == 0 or fed.mask is None:
        return float(each.mean())
    return float(each[fed.mask[row].bool().to(each.device)].mean())
