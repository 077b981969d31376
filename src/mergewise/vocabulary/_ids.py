"""Token ids in ``config.json`` and ``generation_config.json``, moved to another vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergewise.checkpoint import shown

_KEYS = re.compile(
    r"(.*_)?token_ids?|.*_token_index|.*_token_indices|(begin_)?suppress_tokens|bad_words_ids"
    r"|force_words_ids"
)

_MAY_LACK = re.compile(
    r"(bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_bos|forced_eos)_token_id"
    r"|(begin_)?suppress_tokens|bad_words_ids|force_words_ids"
)
"""Ids that may be null; a model without its image token cannot be loaded."""


@dataclass
class IdChange:
    """Moves ids of one vocabulary to another.

    Args:
        before, after: ids by token.
        rows: rows of the output; an id without a token stays, if there is such a row.

    Attributes:
        lost: (key, id) pairs whose token the output lacks; they are set to null.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    rows: int
    lost: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = {number: token for token, number in self.before.items()}
        self._taken = set(self.after.values())

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a config, nested ones included, with its token ids moved."""
        return {key: self._value(key, value) for key, value in config.items()}

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self.applied(value)
        if not _KEYS.fullmatch(key):
            return value
        return self._moved(key, value)

    def _moved(self, key: str, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return self._one(key, value)
        if isinstance(value, list):
            moved = [self._moved(key, item) for item in value]
            return [item for item in moved if item is not None or item in value]
        return value

    def _one(self, key: str, number: int) -> int | None:
        token = self._names.get(number)
        if token is not None and token in self.after:
            return self.after[token]
        if number < 0 or (token is None and number < self.rows and number not in self._taken):
            return number
        self.lost.append((key, number))
        return None

    def told(self) -> list[str]:
        """Of each id that was lost, that it was."""
        return [
            f"{key} {number}{self._named(number)} is not in the output's vocabulary"
            for key, number in self.lost
        ]

    def needed(self) -> list[tuple[str, int, str | None]]:
        """What was lost and cannot be done without: key, id, token."""
        return [
            (key, number, self._names.get(number))
            for key, number in self.lost
            if not _MAY_LACK.fullmatch(key)
        ]

    def _named(self, number: int) -> str:
        return f" ({shown(self._names[number], 40)})" if number in self._names else ""
