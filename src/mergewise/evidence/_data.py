"""Data sets for calibration and evaluation: files of many kinds, as one stream of records.

data.jsonl[.gz]         one JSON object a line
data.json[.gz]          a list of JSON objects
data.csv[.gz], .tsv     a header line, then one record a line
data.txt[.gz], .md, .py one record ``{"text": everything}``
data.npz                ``image`` and ``label`` of a split (``x_test``, ``y_test``)
data.parquet            one record a row (needs pyarrow)
datasets:NAME[:CONFIG]  a set of the `datasets` package, its split named by the task
any Python iterable     of mappings, or of texts
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from mergewise.errors import DataError, MissingExtraError

Record = Mapping[str, Any]
Source = str | Path | Iterable[Any]

DATASETS = "datasets:"
_TEXT = (".txt", ".md", ".py", ".rst")


@dataclass(frozen=True)
class Data:
    """A data set, or part of one; iterating gives its records.

    Attributes:
        source: a path, ``datasets:NAME``, or an iterable of records or texts.
        rows: the first row and the one after the last, from 0; None for the end.
        split: which split of an ``.npz`` file or a set of `datasets`.
        columns: names for the columns of a ``.csv`` or ``.tsv`` file that has no header line.
        share: (k, n) takes every n-th row from the k-th on, for one of n workers.
    """

    source: Source
    rows: tuple[int, int | None] = (0, None)
    split: str = "test"
    columns: tuple[str, ...] = ()
    share: tuple[int, int] = (0, 1)

    def __iter__(self) -> Iterator[Record]:
        start, stop = self.rows
        first, step = self.share
        chosen = itertools.islice(self._all(), start, stop)
        yield from itertools.islice(chosen, first, None, step)

    def only(self, share: tuple[int, int]) -> Data:
        """What the k-th of n workers reads."""
        return replace(self, share=share)

    @property
    def name(self) -> str:
        """The source in words."""
        if isinstance(self.source, str | Path):
            return str(self.source)
        return f"<{type(self.source).__name__}>"

    def fingerprint(self) -> str | None:
        """SHA-256 of the source's bytes and of the choice of rows; None if it is no file."""
        if not isinstance(self.source, str | Path) or str(self.source).startswith(DATASETS):
            return None
        digest = hashlib.sha256()
        with _opened(Path(self.source)) as file:
            while part := file.read(1 << 22):
                digest.update(part)
        digest.update(repr((self.rows, self.split, self.columns, self.share)).encode())
        return digest.hexdigest()

    def _all(self) -> Iterator[Record]:
        if not isinstance(self.source, str | Path):
            return (_record(value, self.name, i) for i, value in enumerate(self.source))
        text = str(self.source)
        if text.startswith(DATASETS):
            return _from_datasets(text[len(DATASETS) :], self.split)
        path = Path(text).expanduser()
        suffixes = [s for s in path.suffixes if s != ".gz"]
        reader = _READERS.get(suffixes[-1] if suffixes else "")
        if reader is None:
            raise DataError(
                f"{path}: not a kind of data that is read; expected "
                f"{', '.join(_READERS)} (text kinds also with .gz)"
            )
        return reader(path, self)


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}; check the path") from None


def _text(path: Path) -> TextIO:
    raw = _opened(path)
    inner = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    return io.TextIOWrapper(inner, encoding="utf-8", newline="")


def _record(value: Any, name: str, row: int) -> Record:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        return value
    raise DataError(
        f"{name}, row {row + 1}: a record must be an object with named fields or a text, "
        f"got {type(value).__name__}"
    )


def _jsonl(path: Path, data: Data) -> Iterator[Record]:
    with _text(path) as file:
        row = 0
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None
            yield _record(value, f"{path}:{number}", row)
            row += 1


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        yield from file
    except (UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _whole(path: Path) -> str:
    with _text(path) as file:
        return "".join(_lines(file, path))


def _json(path: Path, data: Data) -> Iterator[Record]:
    try:
        values = json.loads(_whole(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{path}: a list of objects expected, got {type(values).__name__}")
    for row, value in enumerate(values):
        yield _record(value, str(path), row)


def _plain(path: Path, data: Data) -> Iterator[Record]:
    yield {"text": _whole(path)}


def _table(delimiter: str, **style: Any) -> Callable[[Path, Data], Iterator[Record]]:
    def read(path: Path, data: Data) -> Iterator[Record]:
        with _text(path) as file:
            rows = csv.reader(_lines(file, path), delimiter=delimiter, **style)
            names: Sequence[str] = data.columns or next(rows, [])
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path}:{rows.line_num}: {len(row)} fields, expected {len(names)} "
                        f"({', '.join(names)}); a file without a header line needs `columns`"
                    )
                yield dict(zip(names, row, strict=True))

    return read


def _npz(path: Path, data: Data) -> Iterator[Record]:
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{data.split}"], arrays[f"y_{data.split}"]
    except KeyError as error:
        raise DataError(f"{path}: no array {error}; expected x_{data.split}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for image, label in zip(images, labels, strict=True):
        yield {"image": image, "label": int(label)}


def _parquet(path: Path, data: Data) -> Iterator[Record]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("data", "pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None


def _from_datasets(name: str, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("data", "datasets") from None
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # it raises many kinds, network errors among them
        raise DataError(f"{DATASETS}{name}, split {split}: {error}") from None
    yield from rows


_READERS: dict[str, Callable[[Path, Data], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    **dict.fromkeys(_TEXT, _plain),
    ".csv": _table(","),
    ".tsv": _table("\t", quoting=csv.QUOTE_NONE),
    ".npz": _npz,
    ".parquet": _parquet,
}
