"""Read a tasks file; all problems are found at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise._paths import expanded
from mergewise.errors import MergewiseError, RecipeError, TasksFileError
from mergewise.evidence._tasks._data import read_data
from mergewise.evidence._tasks._fields import Reader, as_node
from mergewise.evidence._tasks._model import Model, TaskEntry, Tasks
from mergewise.evidence.evaluators import Evaluator, Task, all_evaluators
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Settings
from mergewise.recipe import Node, Position, Problems, parse_documents, read_source, suggest

TOP = ("tasks", "base", "experts", "model")
MODEL = ("device", "dtype", "trust_remote_code")
COMMON = ("name", "kind", "data", "head", "expert", "held_out", "limit")
_INLINE = "<tasks>"


def load_tasks(source: str | Path | Mapping[str, Any]) -> Tasks:
    """Read and check a tasks file. Neither data nor models are opened.

    Args:
        source: the path of a YAML file, YAML text (a `str` with a line break), or a mapping, in
            which data may also be iterables of records and models may be `LiveModel`. Paths are
            relative to the file, or else to the current folder.

    Raises:
        TasksFileError: with every problem found, in document order.
    """
    problems = Problems()
    try:
        node, path = _document(source, problems)
        tasks = _read(node, path, problems)
    except RecipeError as error:
        raise TasksFileError(error.diagnostics) from None
    if problems.failed or tasks is None:
        raise TasksFileError(problems.in_order())
    return tasks


def _document(
    source: str | Path | Mapping[str, Any], problems: Problems
) -> tuple[Node | None, str]:
    if isinstance(source, Mapping):
        return as_node(source, Position(_INLINE)), _INLINE
    path, text = read_source(source, "a tasks file")
    path = _INLINE if isinstance(source, str) and "\n" in source else path
    documents = parse_documents(text, path, problems)
    if len(documents) > 1:
        problems.error(documents[1].position, "one document expected; remove the line `---`")
    return (documents[0] if documents else None), path


def _read(node: Node | None, path: str, problems: Problems) -> Tasks | None:
    if node is None:
        problems.error(Position(path), "the document is empty; a tasks file needs `tasks:`")
        return None
    folder = Path() if path == _INLINE else Path(path).parent
    read = Reader(problems, folder)
    if not read.keys(node, TOP, "the tasks file"):
        return None
    return Tasks(
        entries=_entries(node, read),
        path=path,
        base=_model(node.get("base"), "base", read),
        experts=_experts(node.get("experts"), read),
        model=_settings(node.get("model"), read),
    )


def _model(node: Node | None, where: str, read: Reader) -> Model | None:
    if node is not None and isinstance(node.value, LiveModel):
        return node.value
    return read.path(node, where)


def _experts(node: Node | None, read: Reader) -> dict[str, Model]:
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        read.wrong(node, "experts", "a mapping from names to checkpoints")
        return {}
    found = {name: _model(child, f"experts.{name}", read) for name, child in node.items()}
    return {name: model for name, model in found.items() if model is not None}


def _settings(node: Node | None, read: Reader) -> dict[str, Any]:
    if node is None or not read.keys(node, MODEL, "model"):
        return {}
    found: dict[str, Any] = {
        key: read.text(node.get(key), f"model.{key}") for key in ("device", "dtype")
    }
    if node.get("trust_remote_code"):
        found["trust_remote_code"] = read.flag(
            node.get("trust_remote_code"), "model.trust_remote_code"
        )
    return {key: value for key, value in found.items() if value is not None}


def _entries(node: Node, read: Reader) -> tuple[TaskEntry, ...]:
    listed = node.get("tasks")
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        at = node if listed is None else listed
        read.wrong(at, "tasks", "a list of tasks (`- name: ...`)")
        return ()
    entries = []
    names: dict[str, Position] = {}
    for i, item in enumerate(listed.value):
        entry = _entry(item, f"tasks[{i}]", read)
        if entry is None:
            continue
        if entry.name in names:
            read.problems.error(
                item.position,
                f"tasks[{i}]: a task {entry.name!r} is already on line "
                f"{names[entry.name].line}; names must differ",
            )
        names.setdefault(entry.name, item.position)
        entries.append(entry)
    return tuple(entries)


def _entry(node: Node, where: str, read: Reader) -> TaskEntry | None:
    if not isinstance(node.value, dict):
        read.wrong(node, where, "a mapping with `name`, `kind` and `data`")
        return None
    name = _needed(node, "name", where, read)
    where = f"task {name}" if name else where
    kind = _needed(node, "kind", where, read)
    cls = _evaluator(node, kind, where, read) if kind else None
    data = read_data(node.get("data"), f"{where}: data", read)
    head = read.path(node.get("head"), f"{where}: head")
    expert = read.text(node.get("expert"), f"{where}: expert")
    held_out = read.flag(node.get("held_out"), f"{where}: held_out")
    limit = read.whole(node.get("limit"), f"{where}: limit", 1)
    if cls is None:
        return None
    read.keys(node, COMMON, where, cls.params)
    options = _options(node, cls, where, read)
    if name is None or kind is None or options is None:
        return None
    try:
        evaluator = cls(Task(name, data, Settings(options), head))
    except MergewiseError as error:
        read.problems.error(node.position, str(error))
        return None
    entry = TaskEntry(kind, evaluator, expert or name, expert is not None, held_out)
    return entry if limit is None else entry.limited(limit)


def _needed(node: Node, key: str, where: str, read: Reader) -> str | None:
    if node.get(key) is None:
        read.problems.error(node.position, f"{where}: `{key}` is missing")
    return read.text(node.get(key), f"{where}: {key}")


def _evaluator(node: Node, kind: str, where: str, read: Reader) -> type[Evaluator] | None:
    known = all_evaluators()
    if kind not in known:
        at = node.get("kind") or node
        hint = "" if suggest(kind, known) else f"; expected one of {', '.join(known)}"
        read.problems.error(
            at.position, f"{where}: no kind of task {kind!r}{hint}", kind if not hint else "", known
        )
    return known.get(kind)


def _options(node: Node, cls: type[Evaluator], where: str, read: Reader) -> dict[str, Any] | None:
    """The evaluator's parameters, complete; None if one is wrong or missing."""
    values = {}
    good = True
    for name, param in cls.params.items():
        given = node.get(name)
        value = None if given is None else given.plain()
        if given is None:
            problem = "required, but absent" if param.required else None
            value = param.default
        else:
            problem = param.problem(value)
        if problem:
            good = False
            at = node if given is None else given
            read.problems.error(at.position, f"{where}: {name}: {problem}")
            continue
        values[name] = param.convert(value)
        if name in cls.paths and value:
            values[name] = str(read.folder / expanded(value))
    return values if good else None
