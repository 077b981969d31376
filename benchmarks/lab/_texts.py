"""Sets of labelled texts in a data folder: ``text_cls/<task>.train.jsonl.gz`` and ``.test``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab._classified import LabSet
from mergewise._lazy import torch
from mergewise.errors import DataError
from mergewise.evidence._data import Data

END = ".train.jsonl.gz"
FEWEST = 2
Row = dict[str, Any]


@dataclass(frozen=True)
class TextSet:
    """One task: rows ``{"text": …, "label": number}``, and what the classes are called."""

    name: str
    names: tuple[str, ...]
    train: list[Row]
    test: list[Row]
    digest: str

    def split(self, seed: int, training: int, validation: int, test: int) -> LabSet:
        """At most so many of each; `inputs` are texts, validation is taken from training."""
        chance = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=chance).tolist()
        validation = min(validation, len(order) // 4)
        rows = [self.train[i] for i in order[validation:][:training]]
        tests = torch.randperm(len(self.test), generator=chance)[:test].tolist()
        return LabSet(
            self.name,
            self.names,
            [row["text"] for row in rows],
            torch.tensor([row["label"] for row in rows]),
            [self.train[i] for i in order[:validation]],
            [self.test[i] for i in tests],
        )


def read_texts(folder: Path) -> list[TextSet]:
    """The sets of ``folder/text_cls`` by name.

    Raises:
        DataError: if there are fewer than two, or one cannot be read.
    """
    files = sorted((folder / "text_cls").glob(f"*{END}"))
    if len(files) < FEWEST:
        raise DataError(
            f"{folder / 'text_cls'}: {len(files)} files named <task>{END}; the text family needs "
            f"{FEWEST} or more, each with <task>.test.jsonl.gz beside it; name the data folder "
            "with --data"
        )
    return [_read(file) for file in files]


def _read(file: Path) -> TextSet:
    name = file.name.removesuffix(END)
    test = file.with_name(f"{name}.test.jsonl.gz")
    meta = file.with_name(f"{name}.meta.json")
    train, held = _rows(file), _rows(test)
    names = _names(meta, 1 + max(row["label"] for row in train + held))
    digest = hashlib.sha256(file.read_bytes() + test.read_bytes() + "\0".join(names).encode())
    return TextSet(name, names, train, held, digest.hexdigest())


def _rows(file: Path) -> list[Row]:
    rows = [dict(record) for record in Data(file)]
    for i, row in enumerate(rows):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or type(label) is not int or label < 0:
            raise DataError(
                f'{file}, row {i + 1}: {{"text": a text, "label": a number from 0}} expected, '
                f"got {str(row)[:60]}"
            )
    if not rows:
        raise DataError(f"{file}: no rows")
    return rows


def _names(meta: Path, classes: int) -> tuple[str, ...]:
    """Of the classes; their numbers where nobody says."""
    try:
        names = json.loads(meta.read_text("utf-8"))["label_names"] if meta.is_file() else None
        if not isinstance(names, list | None):
            raise TypeError(f"label_names are {str(names)[:40]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{meta}: {{"label_names": [...]}} expected: {error}') from None
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) < classes:
        raise DataError(f"{meta}: {len(names)} label_names, but labels go up to {classes - 1}")
    return tuple(map(str, names))
