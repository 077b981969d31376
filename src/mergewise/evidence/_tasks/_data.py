"""`data:` of a task: a path, inline records, or either by split."""

from __future__ import annotations

from collections.abc import Iterator

from mergewise._paths import expanded
from mergewise.errors import DataError
from mergewise.evidence._data import DATASETS, Data, Source
from mergewise.evidence._tasks._fields import Reader, is_object
from mergewise.recipe import Node

_KEYS = ("path", "rows", "split", "columns", "separator")


def read_data(node: Node | None, where: str, read: Reader) -> dict[str, Data]:
    """Data sets by split; one set without a split's name is ``test``."""
    if node is None:
        return {}
    if not isinstance(node.value, dict) or "path" in node.value:
        found = {"test": _one(node, where, "test", read)}
    else:
        found = {
            split: _one(child, f"{where}.{split}", split, read) for split, child in node.items()
        }
    return {split: data for split, data in found.items() if data is not None}


def _one(node: Node, where: str, split: str, read: Reader) -> Data | None:
    if is_object(node):
        return _of_object(node, split)
    if isinstance(node.value, list):
        return Data(node.plain(), split=split)
    if not isinstance(node.value, dict):
        source = _source(node, where, read)
        return None if source is None else Data(source, split=split)
    return _detailed(node, where, split, read)


def _of_object(node: Node, split: str) -> Data:
    value: object = node.value
    if isinstance(value, Data):
        return value
    # several models read the data, so what can be read only once is kept
    return Data(list(value) if isinstance(value, Iterator) else value, split=split)  # type: ignore[arg-type]


def _detailed(node: Node, where: str, split: str, read: Reader) -> Data | None:
    read.keys(node, _KEYS, where)
    at = node.get("path")
    if at is None:
        read.problems.error(node.position, f"{where}: `path` is missing")
        return None
    source = _object_or_path(at, where, read)
    name = read.text(node.get("split"), f"{where}.split") or split
    rows = _rows(node.get("rows"), f"{where}.rows", read)
    columns = _columns(node.get("columns"), f"{where}.columns", read)
    separator = _separator(node.get("separator"), f"{where}.separator", read)
    if source is None:
        return None
    try:
        return Data(source, rows, name, columns, separator=separator)
    except DataError as error:
        read.problems.error(node.position, f"{where}: {error}")
        return None


def _object_or_path(node: Node, where: str, read: Reader) -> Source | None:
    if is_object(node):
        return _of_object(node, "test").source
    return _source(node, f"{where}.path", read)


def _source(node: Node, where: str, read: Reader) -> Source | None:
    text = read.text(node, where)
    if text is None or text.startswith(DATASETS):
        return text
    return read.folder / expanded(text)


def _rows(node: Node | None, where: str, read: Reader) -> tuple[int, int | None]:
    """``[from, to]``, or a number for the first so many."""
    if node is None:
        return (0, None)
    items = node.value if isinstance(node.value, list) else [Node(0, node.position), node]
    values = [item.value for item in items]
    if len(values) == 2 and type(values[0]) is int and type(values[1]) in (int, type(None)):
        return (values[0], values[1])  # type: ignore[return-value]
    read.wrong(node, where, "[from, to], the first row being 0 and `to` not included,")
    return (0, None)


def _separator(node: Node | None, where: str, read: Reader) -> str:
    if node is None or isinstance(node.value, str):
        return "" if node is None else str(node.value)
    read.wrong(node, where, "text")
    return ""


def _columns(node: Node | None, where: str, read: Reader) -> tuple[str, ...]:
    if node is None:
        return ()
    if isinstance(node.value, list):
        names = [read.text(item, where) for item in node.value]
        return tuple(name for name in names if name is not None)
    read.wrong(node, where, "a list of names")
    return ()
