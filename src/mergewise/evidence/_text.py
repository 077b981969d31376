"""Records to texts, texts to token ids, token ids to padded batches."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import DataError
from mergewise.evidence._data import Record

if TYPE_CHECKING:
    from torch import Tensor

_USUAL = (("text",), ("question", "answer"), ("prompt", "completion"), ("prompt",), ("content",))


class _Fields(string.Formatter):
    """``{name}`` only: no attributes, no indexing, no conversions."""

    def __init__(self, row: int) -> None:
        self._row = row

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if field_name not in kwargs:
            raise DataError(
                f"row {self._row + 1} has no field {field_name!r}; it has {', '.join(kwargs)}"
            )
        return kwargs[field_name], field_name


def render(template: str, record: Record, row: int) -> str:
    """`template` with ``{field}`` replaced by the record's fields; ``{{`` stands for a brace.

    Raises:
        DataError: naming the row and the field that is missing.
    """
    try:
        return _whole(_Fields(row).vformat(template, (), dict(record)), row)
    except (ValueError, TypeError) as error:
        raise DataError(f"template {template!r}: {error}") from None


def _whole(text: str, row: int) -> str:
    """JSON can escape half a character, which no tokenizer takes."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"row {row + 1}: half a character (U+D800 to U+DFFF) is not text")
    return text


def text_of(record: Record, row: int, template: str | None = None, tokenizer: Any = None) -> str:
    """A record as one text: by `template`, or by the usual fields.

    Without a template: ``text``; else ``question`` and ``answer``; else ``prompt`` and
    ``completion``, joined by a newline; ``messages`` goes through the tokenizer's chat template.

    Raises:
        DataError: if none of these fields is there.
    """
    if template is not None:
        return render(template, record, row)
    if isinstance(record.get("messages"), list) and tokenizer is not None:
        return _chat(tokenizer, record["messages"], row)
    for names in _USUAL:
        if all(isinstance(record.get(name), str) for name in names):
            return _whole("\n".join(record[name] for name in names), row)
    kinds = (name if isinstance(v, str) else f"{name} ({_kind(v)})" for name, v in record.items())
    raise DataError(
        f"row {row + 1} has no text: expected a field `text`, or a template such as "
        f"'{{question}} {{answer}}'; it has {', '.join(kinds) or 'no fields'}"
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _chat(tokenizer: Any, messages: list[Any], row: int) -> str:
    try:
        return _whole(str(tokenizer.apply_chat_template(messages, tokenize=False)), row)
    except Exception as error:  # a template is a program, and raises what it likes
        raise DataError(
            f"row {row + 1}: the tokenizer's chat template does not take `messages`: {error}"
        ) from None


@dataclass(frozen=True)
class Batch:
    """Sequences of token ids, padded on the right.

    Attributes:
        ids: int64 [examples, tokens].
        mask: int64 [examples, tokens], 1 for a token and 0 for padding.
        rows: which example each row is, counted over all batches.
    """

    ids: Tensor
    mask: Tensor
    rows: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.mask.sum())

    def to(self, device: Any) -> Batch:
        """The same batch on `device`."""
        return Batch(self.ids.to(device), self.mask.to(device), self.rows)


def encode(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    """Token ids of `text`, with the special tokens the tokenizer adds, cut to `max_length`."""
    # it would warn of texts longer than the model's input, which are cut or windowed afterwards
    ids: list[int] = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    return ids[:max_length]


def windows(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """`ids` cut into pieces of at most `length`."""
    for start in range(0, len(ids), length):
        yield list(ids[start : start + length])


def padded(sequences: Iterable[Sequence[int]], size: int, pad: int = 0) -> Iterator[Batch]:
    """Batches of at most `size` sequences in their order; empty sequences are left out."""
    held: list[tuple[int, Sequence[int]]] = []
    for row, sequence in enumerate(sequences):
        if len(sequence):
            held.append((row, sequence))
        if len(held) == size:
            yield _pad(held, pad)
            held = []
    if held:
        yield _pad(held, pad)


def _pad(held: Sequence[tuple[int, Sequence[int]]], pad: int) -> Batch:
    longest = max(len(sequence) for _, sequence in held)
    ids = torch.full((len(held), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, (_, sequence) in enumerate(held):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return Batch(ids, mask, tuple(row for row, _ in held))
