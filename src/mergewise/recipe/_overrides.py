"""``--set KEY=VALUE``: change the document before it is checked."""

from __future__ import annotations

from collections.abc import Sequence

from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import OVERRIDE, Position, Problems, fail, shorten, suggest
from mergewise.recipe._yaml import dump_documents, parse_documents

_CREATED = ("parameters", "tokenizer")


def apply_overrides(documents: list[Node], overrides: Sequence[str], problems: Problems) -> None:
    """Change `documents` in place.

    ``parameters.t=0.3`` sets a key of the last document, ``models.0.parameters.weight=1`` goes
    through a list by index (negative from the end), and a first segment that is the name of a
    stage chooses that document: ``first.dtype=float32``. The value is read as YAML; an empty one
    unsets the key.

    Raises:
        RecipeError: if an override is not ``KEY=VALUE`` or its path leads nowhere.
    """
    for text in overrides:
        _apply(documents, text, problems)


def _apply(documents: list[Node], text: str, problems: Problems) -> None:
    path, equals, value = text.partition("=")
    origin = f"{OVERRIDE}{shorten(text)}"
    segments = path.strip().split(".")
    if not equals or not all(segments):
        raise fail(Position(origin), "KEY=VALUE expected, such as parameters.t=0.3")
    at = Position(origin, 1, len(path) + 2)
    new = _value(value, origin, at, problems)
    node, segments = _choose_document(documents, segments)
    for done, segment in enumerate(segments[:-1]):
        node = _descend(node, segment, ".".join(segments[:done]) or "the recipe", origin)
    _assign(node, segments[-1], new, ".".join(segments[:-1]) or "the recipe", origin)


def _value(text: str, origin: str, at: Position, problems: Problems) -> Node:
    parsed = parse_documents(text, origin, problems)
    if len(parsed) > 1:
        raise fail(at, "one value expected, got several YAML documents")
    node = parsed[0] if parsed else Node(None, at)
    node.position = at
    return node


def _choose_document(documents: list[Node], segments: list[str]) -> tuple[Node, list[str]]:
    for document in documents:
        name = document.get("name")
        if len(segments) > 1 and name is not None and name.raw == segments[0]:
            return document, segments[1:]
    return documents[-1], segments


def _descend(node: Node, segment: str, inside: str, origin: str) -> Node:
    if isinstance(node.value, list):
        return node.value[_index(node.value, segment, inside, origin)]
    if not isinstance(node.value, dict):
        raise fail(Position(origin), f"{inside} is {node.kind}; it has no `{shorten(segment)}`")
    child = node.get(segment)
    if child is not None:
        return child
    if segment not in _CREATED:
        hint = suggest(segment, node.value) or f"; there are: {', '.join(node.value) or 'no keys'}"
        raise fail(Position(origin), f"{inside} has no `{shorten(segment)}`{hint}")
    child = Node({}, Position(origin))
    _assign(node, segment, child, inside, origin)
    return child


def _assign(node: Node, segment: str, new: Node, inside: str, origin: str) -> None:
    if isinstance(node.value, list):
        node.value[_index(node.value, segment, inside, origin)] = new
    elif isinstance(node.value, dict):
        node.value[segment] = new
        node.keys[segment] = Position(origin)
    else:
        raise fail(Position(origin), f"{inside} is {node.kind}; it has no `{shorten(segment)}`")


def _index(items: list[Node], segment: str, inside: str, origin: str) -> int:
    try:
        index = int(segment)
        items[index]
    except (ValueError, IndexError):
        raise fail(
            Position(origin),
            f"{inside} is a list of {len(items)}; an index from 0 to {len(items) - 1} expected, "
            f"got `{shorten(segment)}`",
        ) from None
    return index


def render(documents: Sequence[Node]) -> str:
    """The documents as YAML text, for a recipe that was changed by overrides."""
    return dump_documents([document.plain() for document in documents])
