"""Readers of data files. The files are nobody's: truncated, hostile and huge ones are refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from mergewise.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from mergewise.evidence._data import Data

Record = Mapping[str, Any]
Reader = Callable[[Path, "Data"], Iterator[Record]]

MAX_LINE = 1 << 26
"""Characters of one line; a line without an end must not fill the memory."""
MAX_WHOLE = 1 << 30
"""Characters of a file that is read whole."""

_TEXT = (".txt", ".md", ".py", ".rst")


def from_file(path: Path, data: Data) -> Iterator[Record]:
    """The records of a file, by its suffix; `data` says which split, columns and separator.

    Raises:
        DataError: if its kind is not read, or it is broken; with file and line.
    """
    reader = _READERS.get(kind_of(path))
    if reader is None:
        raise DataError(
            f"{path}: not a kind of data that is read; expected "
            f"{', '.join(_READERS)} (text kinds also with .gz)"
        )
    return reader(path, data)


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, in lower case, such as ``.csv`` of ``a.CSV.gz``."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def as_record(value: Any, where: str) -> Record:
    """A text as a record; raises DataError for what is neither text nor mapping."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        return value
    raise DataError(
        f"{where}: a record must be an object with named fields or a text, "
        f"got {type(value).__name__}"
    )


def opened(path: Path) -> BinaryIO:
    """A file to be read.

    Raises:
        DataError: if it is absent, unreadable, or a folder, pipe or device.
    """
    # O_NONBLOCK: opening a pipe nobody writes to would otherwise wait for ever
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be opened: {reason}; check the path") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: a regular file expected, got a folder, pipe or device")
    return os.fdopen(descriptor, "rb")


def _text(path: Path) -> TextIO:
    raw = opened(path)
    inner: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
    return io.TextIOWrapper(inner, encoding="utf-8-sig", newline="")


def _part(path: Path, read: Callable[[], str]) -> str:
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8 text"
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; is it complete?") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := _part(path, lambda: file.readline(MAX_LINE)):
        number += 1
        if len(line) >= MAX_LINE:
            raise DataError(f"{path}:{number}: a line of more than {MAX_LINE:,} characters")
        yield line


def _whole(path: Path) -> str:
    with _text(path) as file:
        text = _part(path, lambda: file.read(MAX_WHOLE))
    if len(text) >= MAX_WHOLE:
        raise DataError(f"{path}: more than {MAX_WHOLE:,} characters; split the file")
    return text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None


def _jsonl(path: Path, data: Data) -> Iterator[Record]:
    with _text(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if line.strip():
                where = f"{path}:{number}"
                yield as_record(_parsed(line, where), where)


def _json(path: Path, data: Data) -> Iterator[Record]:
    values = _parsed(_whole(path), str(path))
    if not isinstance(values, list):
        raise DataError(f"{path}: a list of objects expected, got {type(values).__name__}")
    for row, value in enumerate(values):
        yield as_record(value, f"{path}, row {row + 1}")


def _plain(path: Path, data: Data) -> Iterator[Record]:
    text = _whole(path)
    parts = text.split(data.separator) if data.separator else [text]
    yield from ({"text": part} for part in parts if part)


def _table(delimiter: str, quoting: int) -> Reader:
    def read(path: Path, data: Data) -> Iterator[Record]:
        with _text(path) as file:
            rows = csv.reader(_lines(file, path), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
            names = list(data.columns) or next(_rows(rows, path), [])
            _check_names(names, path)
            for row in _rows(rows, path):
                if row:
                    yield _named(row, names, f"{path}:{rows.line_num}")

    return read


def _rows(rows: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(f"{path}: {error}; is it a table of text?") from None


def _check_names(names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{path}: two columns are called {name!r}; rename one in its first line, or name "
                "all by `columns` if that line is data"
            )


def _named(row: Sequence[str], names: Sequence[str], where: str) -> Record:
    if len(row) != len(names):
        raise DataError(
            f"{where}: {len(row)} fields, expected {len(names)} "
            f"({', '.join(names)}); a file without a header line needs `columns`"
        )
    return dict(zip(names, row, strict=True))


def _npz(path: Path, data: Data) -> Iterator[Record]:
    split = data.split
    images, labels = _arrays(path, split)
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels):
        raise DataError(
            f"{path}: x_{split} of shape {list(images.shape)} and y_{split} of shape "
            f"{list(labels.shape)} do not belong together; expected [n, ...] and [n]"
        )
    if labels.dtype.kind not in "iub":
        raise DataError(f"{path}: y_{split} must hold whole numbers, got {labels.dtype}")
    for image, label in zip(images, labels, strict=True):
        yield {"image": image, "label": int(label)}


def _arrays(path: Path, split: str) -> tuple[Any, Any]:
    import numpy

    names = (f"x_{split}", f"y_{split}")
    try:
        with opened(path) as file, numpy.load(file, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays.files]
            if missing:
                raise DataError(
                    f"{path}: no array {missing[0]!r}; it has {', '.join(arrays.files) or 'none'}"
                )
            return arrays[names[0]], arrays[names[1]]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, NotImplementedError,
            MemoryError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise DataError(f"{path}: cannot be read as arrays: {error}") from None


def _parquet(path: Path, data: Data) -> Iterator[Record]:
    opened(path).close()
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("data", "pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None


def from_datasets(name: str, split: str) -> Iterator[Record]:
    """The rows of ``NAME`` or ``NAME:CONFIG``; raises DataError, MissingExtraError."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("data", "datasets") from None
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # it raises many kinds, network errors among them
        raise DataError(f"datasets:{name}, split {split}: {error}") from None
    yield from rows


_READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    **dict.fromkeys(_TEXT, _plain),
    ".csv": _table(",", csv.QUOTE_MINIMAL),
    ".tsv": _table("\t", csv.QUOTE_NONE),
    ".npz": _npz,
    ".parquet": _parquet,
}
