"""What may stand for a parameter: a scalar, a gradient, choices, conditions, block weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergewise.recipe._blocks import read_blocks
from mergewise.recipe._keys import check_keys
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Position, Problems, shorten

Leaf = bool | int | float | str
Value = Leaf | tuple[Leaf, ...]


@dataclass(frozen=True)
class Condition:
    """One ``{filter, value}``; it holds for tensor names that contain `filter`."""

    filter: str | None
    value: Value
    position: Position
    places: tuple[Position, ...] = ()
    """Where each item of a list is; empty for a scalar."""
    block: str | None = None
    """The block of a UNet that it is for; see `_blocks`."""

    def matches(self, name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in name


@dataclass(frozen=True)
class Setting:
    """A parameter as written at one level of the recipe.

    Attributes:
        where: its path in the document, such as ``models[1].parameters.density``.
        conditions: tried in order; the first that matches gives the value. A value without
            conditions is one that always matches.
        conditional: whether it was written with filters.
        native: whether it was written as mergekit cannot read it.
    """

    where: str
    position: Position
    conditions: tuple[Condition, ...]
    conditional: bool = False
    native: bool = False

    def leaves(self) -> Iterator[tuple[Leaf, Position]]:
        """Every number, switch or text in it, with the place of its condition."""
        for condition in self.conditions:
            if isinstance(condition.value, tuple):
                yield from zip(condition.value, condition.places, strict=True)
            else:
                yield condition.value, condition.position

    def at(self, t: float, name: str, kind: type = float) -> tuple[Leaf, str] | None:
        """The value at position `t` of a slice for the tensor `name`, and where it is from.

        None if no condition matches. `kind` is the parameter's type: switches and text are
        picked from a list, not interpolated.
        """
        for condition, origin in zip(self.conditions, self._origins, strict=True):
            if condition.matches(name):
                at = f" at t={t:.2f}" if isinstance(condition.value, tuple) else ""
                return evaluate(condition.value, t, kind), origin + at
        return None

    @cached_property
    def _origins(self) -> tuple[str, ...]:
        """Where the value of each condition is from."""
        return tuple(self._origin(condition) for condition in self.conditions)

    def _origin(self, condition: Condition) -> str:
        text = f"{condition.position} {self.where}"
        if condition.block is not None:
            text += f", block {condition.block}"
        elif condition.filter is not None:
            text += f", filter {condition.filter!r}"
        if isinstance(condition.value, tuple):
            text += f", gradient [{', '.join(str(v) for v in condition.value)}]"
        return text


Settings = Mapping[str, Setting]


def evaluate(value: Value, t: float, kind: type = float) -> Leaf:
    """A scalar itself; a list at position `t` in [0, 1].

    Numbers are interpolated linearly between equally spaced points (for an `int` parameter the
    result is rounded); switches and text are picked: item ``floor(t (n − 1))``.
    """
    if not isinstance(value, tuple):
        return value
    x = t * (len(value) - 1)
    i = min(math.floor(x), len(value) - 1)
    low, high = value[i], value[min(i + 1, len(value) - 1)]
    if kind in (bool, str) or not all(_is_number(v) for v in value):
        return low
    fraction = x - i
    mixed = (1 - fraction) * float(low) + fraction * float(high)
    return round(mixed) if kind is int else mixed


def _is_number(value: Leaf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_setting(node: Node, where: str, problems: Problems) -> Setting | None:
    """The setting at `node`; None, with the problem reported, if it has no such form."""
    if node.has("blocks"):
        return _from_blocks(node, where, problems)
    if isinstance(node.value, dict):
        conditions, conditional = [_condition(node, where, problems)], True
    elif isinstance(node.value, list) and any(isinstance(n.value, dict) for n in node.value):
        conditions, conditional = [_condition(n, where, problems) for n in node.value], True
    else:
        value = _value(node, where, problems)
        plain = None if value is None else Condition(None, value, node.position, _places(node))
        conditions, conditional = [plain], False
    if any(c is None for c in conditions):
        return None
    kept = tuple(c for c in conditions if c is not None)
    _check_reach(kept, where, problems)
    return Setting(where, node.position, kept, conditional)


def _from_blocks(node: Node, where: str, problems: Problems) -> Setting | None:
    weights = read_blocks(node, where, problems)
    if weights is None:
        return None
    found = [
        Condition(text, weight.value, weight.position, block=weight.block)
        for weight in weights
        for text in weight.filters or (None,)
    ]
    return Setting(where, node.position, tuple(found), conditional=True, native=True)


def _check_reach(conditions: tuple[Condition, ...], where: str, problems: Problems) -> None:
    for position, condition in enumerate(conditions[:-1]):
        if condition.filter in (None, "*"):
            problems.warn(
                conditions[position + 1].position,
                f"{where}: never reached, because the entry before it matches every tensor; "
                "put the one without filter last",
            )
            return


def _condition(node: Node, where: str, problems: Problems) -> Condition | None:
    if not isinstance(node.value, dict):
        problems.error(node.position, f"{where}: {{filter, value}} expected, got {node.kind}")
        return None
    if not node.has("value"):
        problems.error(
            node.position,
            f"{where}: a number, a list, or {{filter, value}} expected, got a mapping of "
            f"{shorten(', '.join(node.value)) or 'nothing'}",
        )
        return None
    check_keys(node, ("filter", "value"), f"{where}: ", problems)
    pattern, inner = node.get("filter"), node.get("value")
    if inner is None:
        problems.error(node.key_position("value"), f"{where}: `value` is empty")
        return None
    if pattern is not None and isinstance(pattern.value, dict | list):
        problems.error(pattern.position, f"{where}.filter: text expected, got {pattern.kind}")
        return None
    value = _value(inner, where, problems)
    if value is None:
        return None
    return Condition(pattern.raw if pattern else None, value, inner.position, _places(inner))


def _places(node: Node) -> tuple[Position, ...]:
    return tuple(n.position for n in node.value) if isinstance(node.value, list) else ()


def _value(node: Node, where: str, problems: Problems) -> Value | None:
    if isinstance(node.value, bool | int | float | str):
        return node.value
    if isinstance(node.value, list) and node.value:
        leaves = [n.value for n in node.value if isinstance(n.value, bool | int | float | str)]
        if len(leaves) == len(node.value):
            return tuple(leaves)
        bad = next(n for n in node.value if not isinstance(n.value, bool | int | float | str))
        problems.error(bad.position, f"{where}: a number expected in this list, got {bad.kind}")
        return None
    got = "an empty list" if isinstance(node.value, list) else node.kind
    problems.error(
        node.position,
        f"{where}: a number, a list of numbers, or {{filter, value}} expected, got {got}",
    )
    return None
