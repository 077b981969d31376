"""How likely a language model finds given tokens after others: in batches, padding excluded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mergewise._lazy import torch
from mergewise.errors import TaskError
from mergewise.evidence._text import encode, padded
from mergewise.evidence.models._live import LiveModel

_MOST_LOGITS = 1 << 28


@dataclass(frozen=True)
class Span:
    """Token ids, of which those from position `first` (at least 1) on are to be predicted."""

    ids: Sequence[int]
    first: int


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a span.

    Attributes:
        nats: minus the log probability of the predicted tokens together.
        hits: how many of them were the model's first choice.
        tokens: how many there are.
    """

    nats: float
    hits: int
    tokens: int


def tokenizer_of(model: LiveModel, task: str) -> Any:
    """The model's tokenizer.

    Raises:
        TaskError: if it has none.
    """
    if model.tokenizer is None:
        raise TaskError(
            f"task {task}: {model.name} has no tokenizer; put tokenizer.json beside its weights"
        )
    return model.tokenizer


def longest_input(model: LiveModel) -> int | None:
    """The most tokens the model's config allows as input; None if it does not say."""
    config = getattr(model.module, "config", None)
    config = getattr(config, "text_config", config)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def joined(tokenizer: Any, prompt: str, text: str) -> Span:
    """`text` after `prompt`, encoded together, with the tokens of `text` to be predicted.

    The prompt's tokens are those with which both encodings, of the prompt alone and of the two
    together, begin. A token that spans the boundary therefore belongs to the text, and so does a
    space at the boundary that the tokenizer joins to the text's first word. The very first token
    of all has nothing before it and is never predicted.
    """
    ids = encode(tokenizer, prompt + text)
    shared = 0
    for one, other in zip(encode(tokenizer, prompt) if prompt else [], ids, strict=False):
        if one != other:
            break
        shared += 1
    return Span(ids, max(1, shared))


def windows(span: Span, context: int, stride: int) -> Iterator[Span]:
    """Pieces that predict each token of `span` exactly once from at most `context` before it."""
    done, begin = span.first, 0
    while done < len(span.ids):
        end = min(begin + context + 1, len(span.ids))
        if end > done:
            yield Span(span.ids[begin:end], done - begin)
            done = end
        begin += stride


def score_spans(
    model: LiveModel,
    spans: Sequence[Span],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Likelihood]:
    """The likelihood of each span, in their order.

    Spans of like length share a batch, of fewer than `batch_size` where their logits would take
    more than about a gigabyte. Arithmetic after the model's logits is float32.

    Raises:
        TaskError: if the model's logits are not finite.
    """
    order = sorted(range(len(spans)), key=lambda i: -len(spans[i].ids))
    found: dict[int, Likelihood] = {}
    size = _fitting(model, len(spans[order[0]].ids), batch_size) if spans else 1
    with torch.inference_mode():
        for batch in padded((spans[i].ids for i in order), size):
            ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
            logits = model.module(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
            for row, place in enumerate(batch.rows):
                span = spans[order[place]]
                found[order[place]] = _likelihood(logits[row], ids[row], span, model.name)
            progress(len(found), len(spans))
    return [found[i] for i in range(len(spans))]


def _fitting(model: LiveModel, longest: int, batch_size: int) -> int:
    config = getattr(model.module, "config", None)
    config = getattr(config, "text_config", config)
    each = longest * int(getattr(config, "vocab_size", None) or 1)
    return max(1, min(batch_size, _MOST_LOGITS // each))


def _likelihood(logits: Any, ids: Any, span: Span, name: str) -> Likelihood:
    scores = logits[span.first - 1 : len(span.ids) - 1].float()
    targets = ids[span.first : len(span.ids)]
    nats = float(torch.nn.functional.cross_entropy(scores, targets, reduction="sum"))
    if nats != nats or nats == float("inf"):
        raise TaskError(
            f"{name} gives NaN or infinite logits; try dtype float32, and look for NaN in its "
            "weights"
        )
    hits = int((scores.argmax(-1) == targets).sum())
    return Likelihood(nats, hits, len(targets))
