"""Loss of a language model on texts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergewise.errors import TaskError
from mergewise.evidence._text import render, text_of
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score
from mergewise.evidence.evaluators._likelihood import (
    Likelihood,
    Span,
    joined,
    longest_input,
    score_spans,
    tokenizer_of,
    windows,
)
from mergewise.evidence.evaluators._records import LIMIT, first_records, records
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Param

_USUAL_CONTEXT = 1024


@dataclass(frozen=True)
class _Text:
    span: Span
    bytes: int


class LanguageModel(Evaluator):
    """Loss, perplexity, accuracy and bits per byte of next-token prediction.

    Every token of a text but the first is predicted exactly once (with a tokenizer that puts a
    beginning-of-text token first, that is every token of the text proper). A text longer than
    `context` is cut into windows of `context` input tokens that begin `stride` tokens apart; a
    window sees nothing before its beginning, and predicts only what no earlier window predicted.
    With the default stride the windows do not overlap; with a stride of half a context every
    token of a long text is predicted from at least half a context, at twice the cost.

    Each text is an example. If there is only one, such as a file without a separator, its windows
    are the examples; neighbours are alike, so intervals then are rather too narrow.

    Bits per byte divides by the UTF-8 bytes of the predicted text, and so compares models with
    different tokenizers.
    """

    name = "language_model"
    summary = "loss, perplexity, next-token accuracy and bits per byte on texts"
    fields = "text; or question and answer; or what `template` and `prompt` name"
    params = {
        "template": Param(str, None, "the text, such as '{question} {answer}'"),
        "prompt": Param(str, None, "leading text that is seen but not scored: '{question} '"),
        "context": Param(
            int, None, "input tokens a window; default 1024 or the model's most", ge=1
        ),
        "stride": Param(int, None, "tokens from window to window; default: the context", ge=1),
        "batch_size": Param(int, 8, "windows that run together", ge=1),
        **LIMIT,
    }
    metrics = {
        "loss": Metric("min", "mean over tokens, nats a token"),
        "perplexity": Metric("min", "exp(loss)"),
        "accuracy": Metric("max", "share of tokens that were the model's first choice"),
        "bits_per_byte": Metric("min", "bits for each UTF-8 byte of the texts"),
    }
    example = """
- name: prose
  kind: language_model
  data: prose.txt
  context: 256
"""

    def check(self) -> None:
        options = self.task.options
        if options.stride and options.context and options.stride > options.context:
            raise TaskError(
                f"task {self.task.name}: stride {options.stride} is longer than context "
                f"{options.context}, so that tokens would be left out; at most the context"
            )
        for record in first_records(self.task):
            if options.prompt:
                render(options.prompt, record, 0)
            if options.template or "messages" not in record:
                text_of(record, 0, options.template)

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        texts = list(self._texts(model, split))
        context, stride = self._sizes(model)
        pieces = [list(windows(text.span, context, stride)) for text in texts]
        flat = [piece for text in pieces for piece in text]
        found = iter(score_spans(model, flat, self.task.options.batch_size, self.progress))
        parts = [[next(found) for _ in text] for text in pieces]
        sums = [_sum(text) for text in parts]
        # of one text nothing could be said about chance, were it one example
        each = parts[0] if len(parts) == 1 and len(parts[0]) > 1 else sums
        return Score(
            metrics=self._metrics(sums, texts),
            outcomes={
                "loss": [s.nats / s.tokens if s.tokens else None for s in each],
                "tokens": [s.tokens for s in each],
            },
            examples=len(each),
            seconds=time.perf_counter() - begun,
            notes=_notes(texts, sums, context, stride, len(each)),
        )

    def _texts(self, model: LiveModel, split: str) -> Iterator[_Text]:
        tokenizer = tokenizer_of(model, self.task.name)
        options = self.task.options
        for row, record in enumerate(records(self.task, split)):
            prompt = render(options.prompt, record, row) if options.prompt else ""
            text = text_of(record, row, options.template, tokenizer)
            span = joined(tokenizer, prompt, text)
            # without a beginning-of-text token the first token is not predicted
            unseen = "" if prompt else tokenizer.decode(span.ids[:1], skip_special_tokens=True)
            yield _Text(span, len(text.encode()) - len(unseen.encode()))

    def _sizes(self, model: LiveModel) -> tuple[int, int]:
        most = longest_input(model)
        context = self.task.options.context or min(_USUAL_CONTEXT, most or _USUAL_CONTEXT)
        if most is not None and context > most:
            raise TaskError(
                f"task {self.task.name}: context {context} is more than the {most} positions "
                f"of {model.name}; choose at most {most}"
            )
        return context, min(self.task.options.stride or context, context)

    def _metrics(self, sums: Sequence[Likelihood], texts: Sequence[_Text]) -> dict[str, float]:
        total = _sum(sums)
        if not total.tokens:
            raise TaskError(f"task {self.task.name}: nothing to score: no text of two tokens")
        loss = total.nats / total.tokens
        size = sum(t.bytes for t, s in zip(texts, sums, strict=True) if s.tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": total.hits / total.tokens,
            "bits_per_byte": total.nats / math.log(2) / max(1, size),
        }


def _sum(parts: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(
        math.fsum(p.nats for p in parts), sum(p.hits for p in parts), sum(p.tokens for p in parts)
    )


def _notes(
    texts: Sequence[_Text], sums: Sequence[Likelihood], context: int, stride: int, examples: int
) -> tuple[str, ...]:
    notes = [f"{sum(s.tokens for s in sums)} tokens predicted"]
    if any(len(text.span.ids) > context + 1 for text in texts):
        notes.append(f"long texts in windows of {context} tokens, {stride} apart")
    if examples > len(texts):
        notes.append(f"one text: its {examples} windows are the examples")
    if short := sum(not s.tokens for s in sums):
        notes.append(f"{short} texts too short to predict anything")
    return tuple(notes)
