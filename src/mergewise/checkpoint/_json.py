"""JSON from untrusted files: no duplicate keys, no number bombs, no deep nesting."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from mergewise.checkpoint._files import read_small, shown, where
from mergewise.errors import CheckpointError

_MAX_DIGITS = 100
_MAX_DEPTH = 100
_MAX_CONTAINERS = 100_000
_MAX_VALUES = 1_000_000


class _BadJsonError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _BadJsonError(f"the key {shown(counts.most_common(1)[0][0])} occurs twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _BadJsonError(f"a number of {len(digits):,} digits")
    return int(digits)


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 20:
        raise _BadJsonError(f"a count or offset cannot be {shown(digits, 40)}")
    return int(digits)


def _refuse(text: str) -> NoReturn:
    raise _BadJsonError(f"a whole number expected, got {shown(text, 40)}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)


def depth_exceeds(value: Any, limit: int) -> bool:
    """Whether dicts and lists are nested deeper than `limit`."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def parse_object(data: bytes, path: Path, what: str, *, naturals: bool = False) -> dict[str, Any]:
    """The JSON object in `data`, which came from `path`.

    Args:
        what: what it is, for messages: ``header``, ``index``.
        naturals: allow no number but integers from 0 on.

    Raises:
        CheckpointError: if it is not UTF-8, not JSON, not an object, repeats a key, is nested
            too deeply, or holds an absurd number.
    """
    hooks: dict[str, Any] = {"parse_int": _integer}
    if naturals:
        hooks = {"parse_int": _natural, "parse_float": _refuse, "parse_constant": _refuse}
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, **hooks)
        deep = depth_exceeds(value, _MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where(path)}: the {what} is not valid JSON: {_reason(error)}; "
            "the file is damaged, fetch it again"
        ) from None
    if deep:
        raise CheckpointError(f"{where(path)}: the {what} is nested more than {_MAX_DEPTH} deep")
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where(path)}: the {what} must be a JSON object, got {type(value).__name__}"
        )
    return value


def read_json(path: Path, what: str, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; raises CheckpointError."""
    data = read_small(path, limit)
    # counted before parsing: parsed JSON can take fifty times the memory of its text
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS or data.count(b",") > _MAX_VALUES:
        raise CheckpointError(
            f"{where(path)}: the {what} holds more than {_MAX_CONTAINERS:,} lists and objects or "
            f"{_MAX_VALUES:,} values; is this the file you mean?"
        )
    return parse_object(data, path, what)
