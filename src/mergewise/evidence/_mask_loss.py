"""The summed loss of one batch, and how many predictions it runs over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import DataError, EvidenceError
from mergewise.evidence._objective import IGNORED, Kind
from mergewise.evidence.models._call import Fed

if TYPE_CHECKING:
    from torch import Tensor, nn


def batch_loss(
    module: nn.Module, fed: Fed, kind: Kind | None, device: torch.device
) -> tuple[Tensor, int]:
    """Negative log-likelihood in nats, summed over tokens (of a text) or classes.

    Args:
        kind: what the module predicts; None to go by the shape of its logits.

    Raises:
        DataError: if classes are missing or do not fit.
        EvidenceError: if the module's outputs are no logits.
    """
    output = module(**{name: value.to(device) for name, value in fed.inputs.items()})
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 3):
        raise EvidenceError(
            f"{type(module).__name__} does not return logits [examples, classes] or [examples, "
            "tokens, vocabulary]; a mask is trained for causal language models and classifiers"
        )
    language = kind == "causal_lm" or (kind is None and logits.ndim == 3)
    rows, labels = _next_tokens(logits, fed) if language else _classes(logits, fed)
    loss = torch.nn.functional.cross_entropy(
        rows.float() if rows.element_size() < 4 else rows, labels, reduction="sum"
    )
    return loss, len(labels)


def _next_tokens(logits: Tensor, fed: Fed) -> tuple[Tensor, Tensor]:
    ids = fed.inputs["input_ids"]
    given = None if fed.labels is None else torch.as_tensor(fed.labels)
    # the class of a text is no label of its tokens
    labels = given if given is not None and given.shape == ids.shape else ids
    kept = labels[:, 1:] != IGNORED
    if fed.mask is not None:
        mask = fed.mask.bool().to(kept.device)
        kept = kept & mask[:, 1:] & mask[:, :-1]
    where = kept.to(logits.device)
    return logits[:, :-1][where], labels[:, 1:].to(logits.device)[where]


def _classes(logits: Tensor, fed: Fed) -> tuple[Tensor, Tensor]:
    labels: Any = None if fed.labels is None else torch.as_tensor(fed.labels).reshape(-1)
    where = f"examples {fed.keys[0]} to {fed.keys[-1]}"
    if labels is None or len(labels) != len(logits):
        raise DataError(
            f"{where}: no class for each; expected a whole number called `label` in every record"
        )
    wrong = (labels < 0) | (labels >= logits.shape[1])
    if labels.is_floating_point() or bool(wrong.any()):
        raise DataError(
            f"{where}: labels {labels.tolist()[:8]} for {logits.shape[1]} classes; expected whole "
            f"numbers from 0 to {logits.shape[1] - 1}"
        )
    return logits, labels.long().to(logits.device)
