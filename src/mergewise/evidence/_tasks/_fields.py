"""Values of a tasks file: typed, checked, paths relative to the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise._paths import expanded
from mergewise.recipe import Node, Position, Problems, shorten, suggest

_PLAIN = (type(None), bool, int, float, str)


def as_node(value: Any, at: Position) -> Node:
    """Plain values as nodes; whatever else Python code hands over is kept as it is."""
    if isinstance(value, Mapping):
        inner = {str(key): as_node(item, at) for key, item in value.items()}
        return Node(inner, at)
    if isinstance(value, list | tuple):
        return Node([as_node(item, at) for item in value], at)
    if isinstance(value, Path):
        value = str(value)
    return Node(value, at, raw=str(value) if isinstance(value, _PLAIN) else "")


def is_object(node: Node) -> bool:
    """Whether it is something that YAML cannot say, such as a model in memory."""
    return not isinstance(node.value, (*_PLAIN, dict, list))


def shown(node: Node) -> str:
    """The value for a message."""
    if is_object(node):
        return type(node.value).__name__
    return shorten(node.raw) if node.raw else node.kind


@dataclass(frozen=True)
class Reader:
    """Reads values and collects what is wrong with them.

    Attributes:
        folder: what paths are relative to.
    """

    problems: Problems
    folder: Path

    def keys(
        self, node: Node, known: Sequence[str], where: str, more: Collection[str] = ()
    ) -> bool:
        """Whether it is a mapping; reports keys that are neither `known` nor one of `more`."""
        if not isinstance(node.value, dict):
            self.wrong(node, where, "a mapping")
            return False
        every = [*known, *more]
        for key in node.value:
            if key not in every:
                close = bool(suggest(key, every))
                hint = "" if close else f"; expected here: {', '.join(every)}"
                message = f"{where}: unknown key `{shorten(key)}`{hint}"
                self.problems.error(node.key_position(key), message, key if close else "", every)
        return True

    def wrong(self, node: Node, where: str, expected: str) -> None:
        """Report a value that is not what was expected."""
        self.problems.error(node.position, f"{where}: {expected} expected, got {shown(node)}")

    def text(self, node: Node | None, where: str) -> str | None:
        """One line of text; numbers and switches are taken as they are written."""
        if node is None:
            return None
        if isinstance(node.value, _PLAIN) and node.raw.strip() and node.raw.isprintable():
            return node.raw
        self.wrong(node, where, "one line of text")
        return None

    def path(self, node: Node | None, where: str) -> Path | None:
        """A path, relative to the tasks file unless absolute; ``~`` is the home folder."""
        text = self.text(node, where)
        return None if text is None else self.folder / expanded(text)

    def flag(self, node: Node | None, where: str) -> bool:
        """true or false; absent is false."""
        if node is not None and not isinstance(node.value, bool):
            self.wrong(node, where, "true or false")
        return node is not None and node.value is True

    def whole(self, node: Node | None, where: str, least: int = 0) -> int | None:
        """A whole number."""
        if node is None:
            return None
        if type(node.value) is int and node.value >= least:
            return node.value
        self.wrong(node, where, f"a whole number from {least} on")
        return None
