"""Models run on a guide's data: opened, fed, and their mean loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence import Data, LiveModel, open_model
from mergewise.guides._base import Ask

_OPENING = ("device", "dtype", "offload", "trust_remote_code")


def opened(checkpoint: Checkpoint, options: Mapping[str, Any]) -> LiveModel:
    """A checkpoint as the options of `mergewise.evidence.collect` say, in its own role."""
    from mergewise.evidence.statistics import role_of

    chosen = {key: options[key] for key in _OPENING if options.get(key)}
    model = open_model(checkpoint.path, role_of(checkpoint), **chosen)
    return dataclasses.replace(model, name=str(checkpoint.path))


def feeder(model: LiveModel, data: Data, options: Mapping[str, Any]) -> Any:
    """Batches of data for a model; may be run through several times."""
    from mergewise.evidence import Feeder, Reading
    from mergewise.evidence.statistics import role_of

    reading = Reading(
        batch_size=options.get("batch_size") or 8,
        max_length=options.get("max_length"),
        template=options.get("template"),
        prepare=dict(options.get("prepare") or {}),
    )
    return Feeder(data, model, reading, role_of(model) == "text_classifier")


def look_at(ask: Ask, data: Data) -> None:
    """Find before any model is loaded that data is empty or lacks a text.

    Raises:
        DataError: if so.
        EvidenceError: for texts without a tokenizer.
    """
    from mergewise.evidence import Reading, survey
    from mergewise.evidence.statistics import has_tokenizer, role_of

    checkpoint = ask.experts[0].checkpoint
    reading = Reading(template=ask.options.get("template"))
    survey(data, role_of(checkpoint), reading, has_tokenizer(checkpoint.path, checkpoint))


def mean_loss(checkpoint: Checkpoint, data: Data, options: Mapping[str, Any]) -> float:
    """The mean negative log-likelihood of the data's tokens, or classes, in nats.

    Raises:
        EvidenceError: if there is nothing to predict.
        NonFiniteError: if the loss is NaN or infinite.
        MergewiseError: as opening and feeding models raise.
    """
    from mergewise.evidence import batch_loss, kind_of

    model = opened(checkpoint, options)
    kind, total, count = kind_of(model.module), 0.0, 0
    with torch.no_grad():
        for fed in feeder(model, data, options):
            loss, predictions = batch_loss(model.module, fed, kind, model.device)
            total, count = total + float(loss), count + predictions
    if count == 0:
        raise EvidenceError(
            f"{data.name}: nothing to predict; its texts have fewer than two tokens"
        )
    if not math.isfinite(total):
        raise NonFiniteError(f"{checkpoint.path}: its loss on {data.name} is {total}")
    return total / count
