"""Where a document comes from: a file, text, or a mapping already built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergewise.recipe._problems import Position, fail
from mergewise.recipe._yaml import dump_documents

MAX_BYTES = 1_000_000
TEXT_PATH = "<recipe>"


def read_source(source: str | Path | Mapping[str, Any], what: str = "a recipe") -> tuple[str, str]:
    """The name used in messages, and the YAML text; `what` is what the document should be.

    A `str` with a line break is YAML; any other `str` is a path. A mapping is written out as
    YAML, so that problems in it have a place.

    Raises:
        RecipeError: if there is nothing readable, not UTF-8, or more than 1 MB.
    """
    if isinstance(source, Mapping):
        return TEXT_PATH, _limited(_dump(source), TEXT_PATH)
    if isinstance(source, str) and "\n" in source:
        return TEXT_PATH, _limited(source, TEXT_PATH)
    return str(source), _read_file(Path(source), what)


def _limited(text: str, path: str) -> str:
    if len(text) > MAX_BYTES:
        raise fail(Position(path), f"a recipe of more than {MAX_BYTES} bytes is refused")
    return text


def _read_file(path: Path, what: str) -> str:
    at = Position(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail(at, f"no such file; give the path of {what} (YAML)") from None
    except IsADirectoryError:
        raise fail(at, f"this is a folder; give the path of {what} (YAML)") from None
    except (OSError, ValueError) as error:
        raise fail(at, f"cannot be read: {error}") from None
    if len(data) > MAX_BYTES:
        raise fail(at, f"more than {MAX_BYTES} bytes; is this {what}?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise fail(
            Position(str(path), line, column),
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 text",
        ) from None


def _dump(source: Mapping[str, Any]) -> str:
    try:
        return dump_documents([_builtin(source)])
    except RecursionError:
        problem = "it contains itself"
    except yaml.YAMLError as error:
        problem = str(error)
    raise fail(
        Position(TEXT_PATH), f"only mappings, lists, text and numbers may be used: {problem}"
    )


def _builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _builtin(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_builtin(item) for item in value]
    return str(value) if isinstance(value, Path) else value
