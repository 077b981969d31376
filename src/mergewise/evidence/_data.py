"""Data sets for calibration and evaluation: files of many kinds, as one stream of records.

data.jsonl[.gz]         one JSON object a line
data.json[.gz]          a list of JSON objects
data.csv[.gz], .tsv     a header line, then one record a line
data.txt[.gz], .md, .py one record ``{"text": everything}``, or several with a separator
data.npz                ``image`` and ``label`` of a split (``x_test``, ``y_test``)
data.parquet            one record a row (needs pyarrow)
datasets:NAME[:CONFIG]  a set of the `datasets` package, its split named by the task
any Python iterable     of mappings, or of texts
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergewise._paths import expanded
from mergewise.errors import DataError

Record = Mapping[str, Any]
Source = str | Path | Iterable[Any]

DATASETS = "datasets:"


@dataclass(frozen=True)
class Data:
    """A data set, or part of one; iterating gives its records.

    Attributes:
        source: a path, ``datasets:NAME``, or an iterable of records or texts.
        rows: the first row and the one after the last, from 0; None for the end.
        split: which split of an ``.npz`` file or a set of `datasets`.
        columns: names for the columns of a ``.csv`` or ``.tsv`` file that has no header line.
        separator: what stands between the records of a text file; empty for one record.
        share: (k, n) takes every n-th row from the k-th on, for one of n workers.

    Raises:
        DataError: if rows or share are no such numbers.
    """

    source: Source
    rows: tuple[int, int | None] = (0, None)
    split: str = "test"
    columns: tuple[str, ...] = ()
    share: tuple[int, int] = (0, 1)
    separator: str = ""

    def __post_init__(self) -> None:
        start, stop = self.rows
        if start < 0 or (stop is not None and stop <= start):
            raise DataError(
                f"{self.name}: rows {start} to {stop}: 0 <= from < to expected; "
                "the first row is 0 and `to` is not included"
            )
        k, n = self.share
        if not 0 <= k < n:
            raise DataError(f"{self.name}: share {k} of {n}: 0 <= k < n expected")

    def __iter__(self) -> Iterator[Record]:
        start, stop = self.rows
        first, step = self.share
        chosen = itertools.islice(self._all(), start, stop)
        yield from itertools.islice(chosen, first, None, step)

    def only(self, share: tuple[int, int]) -> Data:
        """What the k-th of n workers reads."""
        return replace(self, share=share)

    def first(self, most: int) -> Data:
        """At most `most` of the rows."""
        start, stop = self.rows
        end = start + most
        return replace(self, rows=(start, end if stop is None else min(stop, end)))

    @property
    def name(self) -> str:
        """The source in words."""
        if isinstance(self.source, str | Path):
            return str(self.source)
        return f"<{type(self.source).__name__}>"

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        if not isinstance(self.source, str | Path) or str(self.source).startswith(DATASETS):
            return None
        return expanded(self.source)

    def fingerprint(self) -> str | None:
        """SHA-256 of the source's bytes and of how they are read; None if it is no file.

        Raises:
            DataError: if it cannot be read.
        """
        if self.path is None:
            return None
        from mergewise.evidence._readers import kind_of, opened

        digest = hashlib.sha256()
        with opened(self.path) as file:
            while part := file.read(1 << 22):
                digest.update(part)
        kind = kind_of(self.path)
        choice = (kind, self.rows, self.split, self.columns, self.share, self.separator)
        digest.update(repr(choice).encode())
        return digest.hexdigest()

    def _all(self) -> Iterator[Record]:
        from mergewise.evidence._readers import as_record, from_datasets, from_file

        if self.path is not None:
            return from_file(self.path, self)
        if isinstance(self.source, str):
            return from_datasets(self.source[len(DATASETS) :], self.split)
        assert not isinstance(self.source, Path)
        return (as_record(v, f"{self.name}, row {i + 1}") for i, v in enumerate(self.source))
