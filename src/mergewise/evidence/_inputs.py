"""From data to what a model is called with: texts, images, or batches of tensors."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import DataError, EvidenceError
from mergewise.evidence._data import DATASETS, Data, Record
from mergewise.evidence._text import encode, padded, text_of, windows
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import Settings

if TYPE_CHECKING:
    pass

MAX_LENGTH = 512


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        batch_size: sequences, or images, that go through the model together.
        max_length: tokens of a sequence; a longer text is cut into several (a classifier's is
            cut off). None for 512, or what the model has positions for if that is less.
        template: makes a text of a record, such as ``{question} {answer}``.
        prepare: options of image classification tasks: ``mean``, ``std``, ``size``, ``image``.
    """

    batch_size: int = 8
    max_length: int | None = None
    template: str | None = None
    prepare: Mapping[str, Any] = field(default_factory=dict)


def as_data(
    source: Any, limit: int | None, share: tuple[int, int], split: str, rows: Any = None
) -> Data:
    """Any source as `Data`, cut to `limit` records of which one worker takes its share.

    Raises:
        DataError: if it is nothing that can be read.
    """
    if not isinstance(source, Data):
        if not isinstance(source, str | Path | Iterable):
            raise DataError(
                f"data of type {type(source).__name__}: expected a path, `Data`, or an iterable"
            )
        source = Data(source, split=split)
    if rows is not None:
        source = replace(source, rows=rows)
    if isinstance(source.source, Iterator):
        # it is looked at before the model is loaded, and read after
        stop = None if limit is None else source.rows[0] + limit
        source = replace(source, source=list(itertools.islice(source.source, stop)))
    if limit is not None:
        source = source.first(limit)
    return source.only(share) if share != (0, 1) else source


def is_tensors(record: Record) -> bool:
    """Whether a record is a batch of tensors already."""
    return bool(record) and all(isinstance(value, torch.Tensor) for value in record.values())


def survey(data: Data, role: Role | None, reading: Reading, tokenizer: bool) -> int | None:
    """Look at the data before the model is loaded; how many records it has, if that is cheap.

    Raises:
        DataError: if it is empty, unreadable, or lacks a text or an image.
    """
    named = isinstance(data.source, str | Path) and str(data.source).startswith(DATASETS)
    count, blank = 0, True
    for record in data:
        text = None
        if not is_tensors(record):
            text = _look(record, count, data, role, reading, tokenizer)
        blank = blank and text is not None and not text.strip()
        count += 1
        if named:
            return None
    if not count:
        raise DataError(f"{data.name}: no records{_share(data)}; check the file and --rows")
    if blank and data.share == (0, 1):
        many = "its text is" if count == 1 else f"all {count} texts are"
        raise DataError(f"{data.name}: {many} empty; check the field, or give a template")
    return count


def _share(data: Data) -> str:
    k, n = data.share
    return "" if n == 1 else f" in share {k + 1} of {n}"


def _look(
    record: Record, row: int, data: Data, role: Role | None, reading: Reading, tokenizer: bool
) -> str | None:
    """The record's text; None for an image, or a chat."""
    if "image" in record:
        return None
    if role == "image_classifier":
        raise DataError(
            f"{data.name}: row {row + 1} has no field `image`, but {', '.join(map(str, record))}; "
            "the model classifies images"
        )
    if not tokenizer:
        raise EvidenceError(
            f"{data.name} has texts, but the model has no tokenizer: no tokenizer.json in its "
            "folder; copy the tokenizer there, or give token ids (Python: dicts of tensors)"
        )
    if reading.template is None and isinstance(record.get("messages"), list):
        return None
    try:
        return text_of(record, row, reading.template)
    except DataError as error:
        raise DataError(f"{data.name}: {error}") from None


class Feeder:
    """Batches of a data set for one model; may be run through several times.

    Attributes:
        digest: SHA-256 of what was fed, known after a run.
        notes: what a reader of the statistics must know.
        max_length: the longest sequence.
    """

    def __init__(self, data: Data, model: LiveModel, reading: Reading, whole: bool) -> None:
        self.data, self.model, self.reading, self.whole = data, model, reading, whole
        self.digest = ""
        self.notes: list[str] = []
        self.max_length = reading.max_length or min(MAX_LENGTH, _positions(model))

    def __iter__(self) -> Iterator[Fed]:
        digest = hashlib.sha256()
        first = next(iter(self.data), None)
        if first is None:
            return
        kind = self._tensors if is_tensors(first) else self._texts
        if "image" in first and not is_tensors(first):
            kind = self._images
        for fed in kind():
            _mark(digest, fed)
            yield fed
        self.digest = digest.hexdigest()

    def _row(self, index: int) -> int:
        first, step = self.data.share
        return self.data.rows[0] + first + index * step

    def _tensors(self) -> Iterator[Fed]:
        for index, record in enumerate(self.data):
            values = dict(record)
            given = [values.pop(name, None) for name in ("labels", "label")]
            labels = next((value for value in given if value is not None), None)
            if len({len(value) for value in values.values()}) != 1:
                raise DataError(
                    f"batch {index + 1}: its tensors have first axes of different lengths"
                )
            count = len(next(iter(values.values())))
            keys = tuple((self._row(index), i) for i in range(count))
            yield Fed(values, values.get("attention_mask"), labels, keys, 1)

    def _texts(self) -> Iterator[Fed]:
        size, pad = self.reading.batch_size, _padding(self.model.tokenizer)
        labels: list[Any] = []
        keys: list[tuple[int, ...]] = []
        done: list[int] = []

        def sequences() -> Iterator[Sequence[int]]:
            for index, record in enumerate(self.data):
                pieces = self._pieces(record, index)
                for number, piece in enumerate(pieces):
                    keys.append((self._row(index), number))
                    labels.append(record.get("label"))
                    done.append(int(number == len(pieces) - 1))
                    yield piece

        for batch in padded(sequences(), size, pad):
            rows = batch.rows
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
            yield Fed(
                inputs,
                batch.mask,
                _labels([labels[row] for row in rows]),
                tuple(keys[row] for row in rows),
                sum(done[row] for row in rows),
            )

    def _pieces(self, record: Record, index: int) -> list[list[int]]:
        tokenizer = self.model.tokenizer
        text = text_of(record, self._row(index), self.reading.template, tokenizer)
        ids = encode(tokenizer, text)
        self._check(ids, index)
        if len(ids) > self.max_length:
            how = "cut off" if self.whole else "cut into several"
            self._note(f"texts of more than {self.max_length} tokens were {how}")
        pieces = [piece for piece in windows(ids, self.max_length) if piece]
        return pieces[:1] if self.whole else pieces

    def _check(self, ids: Sequence[int], index: int) -> None:
        known = getattr(getattr(self.model.module, "config", None), "vocab_size", None)
        if isinstance(known, int) and ids and max(ids) >= known:
            raise DataError(
                f"row {self._row(index) + 1} has the token id {max(ids)}, but the model knows "
                f"{known} tokens; is it the tokenizer of another model?"
            )

    def _images(self) -> Iterator[Fed]:
        from mergewise.evidence.evaluators._base import Task
        from mergewise.evidence.evaluators.image_classification import ImageClassification

        known = ImageClassification.params
        defaults = {name: param.default for name, param in known.items()}
        settings = Settings(
            {**defaults, "batch_size": self.reading.batch_size, **self.reading.prepare}
        )
        task = ImageClassification(Task("calibration", {}, settings))
        rows = enumerate(self.data)
        while held := list(itertools.islice(rows, self.reading.batch_size)):
            images = [task.read(record, self._row(i)) for i, record in held]
            keys = tuple((self._row(i),) for i, _ in held)
            labels = _labels([record.get("label") for _, record in held])
            for batch in task.batches(self.model, images, self.notes):
                yield Fed(dict(batch.inputs), None, labels, keys, len(held))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _labels(values: Sequence[Any]) -> Any:
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        return None
    return torch.tensor(values)


def _padding(tokenizer: Any) -> int:
    found = getattr(tokenizer, "pad_token_id", None)
    return found if isinstance(found, int) else 0


def _positions(model: LiveModel) -> int:
    """How many positions the model has, as its config says; some count two that are reserved."""
    config = getattr(model.module, "config", None)
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(found, int) or found < 1:
        return MAX_LENGTH
    return found - 2 if "roberta" in str(getattr(config, "model_type", "")) else found


def _mark(digest: Any, fed: Fed) -> None:
    for i in range(len(fed.keys)):
        keep = None if fed.mask is None else fed.mask[i].bool()
        for name, value in fed.inputs.items():
            row = value[i]
            per_token = keep is not None and row.shape[:1] == keep.shape
            row = row[keep] if per_token else row
            digest.update(f"{name}{tuple(row.shape)}".encode())
            digest.update(row.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
