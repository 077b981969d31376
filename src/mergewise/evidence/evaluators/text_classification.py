"""Texts, or pairs of texts, into classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise._lazy import torch
from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Record
from mergewise.evidence._text import render, text_of
from mergewise.evidence.evaluators._classify import COMMON, Classifier
from mergewise.evidence.evaluators._features import Batch, is_transformer
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import Param

if TYPE_CHECKING:
    from torch import Tensor

Encoded = dict[str, list[int]]


class TextClassification(Classifier):
    """Accuracy, per-class recall and calibration on texts."""

    name = "text_classification"
    summary = "classes of texts, or of pairs of texts, by a whole classifier or a body with a head"
    fields = "`text` (or by template), `label`; a second text for pairs"
    whole: ClassVar[Role] = "text_classifier"
    pool = "mean"
    params = {
        "template": Param(str, None, "the text from a record's fields, such as '{title}: {body}'"),
        "pair": Param(str, None, "field (or template) of the second text of a pair"),
        "max_length": Param(int, None, "tokens after which a text is cut; by default the model's",
                            ge=2),
        **COMMON,
    }  # fmt: skip
    example = """\
- name: topics
  kind: text_classification
  data: ag_news.test.jsonl.gz
  head: heads/ag_news.safetensors
  pool: mean
  max_length: 128
"""

    def read(self, record: Record, row: int) -> tuple[str, ...]:
        """The text, or the two texts of a pair."""
        first = text_of(record, row, self.option("template"))
        if (pair := self.option("pair")) is None:
            return (first,)
        return first, render(pair if "{" in pair else f"{{{pair}}}", record, row)

    def batches(self, model: LiveModel, inputs: Sequence[Any], notes: list[str]) -> Iterator[Batch]:
        """Texts of like length together, the longest first."""
        encoded = self._encoded(model, inputs, notes)
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        size = 1 if self._one_by_one(model) else self.option("batch_size")
        pads = {"input_ids": _pad_id(model)}
        names = ["input_ids", "attention_mask"]
        # other models take no types, or would add a word's embedding for them
        if getattr(getattr(model.module, "config", None), "type_vocab_size", 0) > 1:
            names += [name for name in ("token_type_ids",) if name in encoded[0]]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            made = {n: _padded([encoded[i][n] for i in rows], pads.get(n, 0)) for n in names}
            yield Batch(rows, made, made["attention_mask"])

    def _encoded(self, model: LiveModel, texts: Sequence[Any], notes: list[str]) -> list[Encoded]:
        """Token ids and masks of every text, cut where the model or the task says."""
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise TaskError(
                f"{model.name} has no tokenizer, which task {self.task.name} needs; "
                "put the base model's tokenizer files into its folder"
            )
        most = self.option("max_length") or _longest(model)
        made = self.__dict__.get("_made")
        # a search scores hundreds of models on the same texts with the same tokenizer
        if made is None or made[0] is not texts or made[1] is not tokenizer or made[2] != most:
            made = self._made = (texts, tokenizer, most, *self._encode_all(tokenizer, texts, most))
        if made[4]:
            notes.append(f"{made[4]} of {len(texts)} texts cut to {most} tokens")
        return made[3]

    def _encode_all(
        self, tokenizer: Any, texts: Sequence[Any], most: int | None
    ) -> tuple[list[Encoded], int]:
        """All texts as ids, and how many were cut."""
        encoded, cut = [], 0
        for row, text in enumerate(texts):
            found = _encode(tokenizer, text)
            if most is not None and len(found["input_ids"]) > most:
                found, cut = _encode(tokenizer, text, truncation=True, max_length=most), cut + 1
            if not found["input_ids"]:
                raise DataError(f"task {self.task.name}: row {row + 1}: the text has no token")
            encoded.append(found)
        return encoded, cut

    def _one_by_one(self, model: LiveModel) -> bool:
        """Decoders that classify by the last token cannot find it among padding they don't know."""
        whole = self.task.head is None and is_transformer(model.module)
        return whole and getattr(model.module.config, "pad_token_id", None) is None


def _encode(tokenizer: Any, text: tuple[str, ...], **cutting: Any) -> Encoded:
    found = tokenizer(*text, verbose=False, **cutting)
    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in found]
    encoded = {name: list(found[name]) for name in names}
    encoded.setdefault("attention_mask", [1] * len(encoded["input_ids"]))
    return encoded


def _longest(model: LiveModel) -> int | None:
    """The most tokens the tokenizer or the model's positions allow, None if neither says."""
    said = [
        getattr(model.tokenizer, "model_max_length", None),
        getattr(getattr(model.module, "config", None), "max_position_embeddings", None),
    ]
    # tokenizers without a limit say 10^30
    return min((int(n) for n in said if n is not None and 0 < n < 10**9), default=None)


def _pad_id(model: LiveModel) -> int:
    config = getattr(model.module, "config", None)
    for owner in (config, model.tokenizer):
        found = getattr(owner, "pad_token_id", None)
        if isinstance(found, int):
            return found
    return 0


def _padded(sequences: Sequence[Sequence[int]], pad: int) -> Tensor:
    made = torch.full((len(sequences), max(map(len, sequences))), pad, dtype=torch.int64)
    for i, sequence in enumerate(sequences):
        made[i, : len(sequence)] = torch.tensor(sequence)
    return made
