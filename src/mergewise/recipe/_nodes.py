"""The document as a tree in which every key and value knows its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mergewise.recipe._problems import Position

Scalar = None | bool | int | float | str


@dataclass
class Node:
    """A value of the document.

    Attributes:
        value: a scalar, a list of nodes, or a dict of nodes by key.
        position: where the value begins.
        raw: a scalar as written, without quotes.
        keys: for a mapping, where each key begins.
    """

    value: Scalar | list[Node] | dict[str, Node]
    position: Position
    raw: str = ""
    keys: dict[str, Position] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What it is, in words a user of YAML knows."""
        names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false"}
        names |= {int: "a number", float: "a number", type(None): "nothing"}
        return names[type(self.value)]

    @property
    def is_null(self) -> bool:
        return self.value is None

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and values of a mapping whose value is not empty (``key:`` alone means absent)."""
        if isinstance(self.value, dict):
            yield from ((k, v) for k, v in self.value.items() if not v.is_null)

    def get(self, key: str) -> Node | None:
        """The value at `key`; None if it is absent or empty."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return None if found is None or found.is_null else found

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def key_position(self, key: str) -> Position:
        return self.keys.get(key, self.position)

    def plain(self) -> Any:
        """The same as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value
