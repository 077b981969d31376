"""What a module is called with, taken apart: one argument is replaced, the others are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergewise._lazy import torch

Key = int | str | None
"""An argument's place or name."""


@dataclass(frozen=True)
class Call:
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def get(self, key: Key) -> Any:
        if key is None:
            return None
        return self.args[key] if isinstance(key, int) else self.kwargs[key]

    def has(self, key: Key) -> bool:
        return key in self.kwargs or (isinstance(key, int) and key < len(self.args))

    def filled(self, key: Key, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with `value` as the one called `key`."""
        if isinstance(key, int):
            return (*self.args[:key], value, *self.args[key + 1 :]), self.kwargs
        return self.args, self.kwargs if key is None else {**self.kwargs, key: value}

    def emptied(self, key: Key) -> Call:
        """The same without the argument called `key`."""
        return self if key is None else Call(*self.filled(key, None))

    def key_of(self, value: Any) -> Key:
        """The argument that is `value`; None if there is none."""
        known: list[tuple[Key, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for key, given in known:
            if given is value is not None or (_tensor(given) and _equal(given, value)):
                return key
        return None

    def same(self, other: Call) -> bool:
        """Whether both have the same arguments, by value."""
        return _equal([self.args, self.kwargs], [other.args, other.kwargs])

    def shares(self, other: Call) -> bool:
        """Whether both have the very same arguments."""
        return _equal([self.args, self.kwargs], [other.args, other.kwargs], objects=True)


def main_output(output: Any) -> Any:
    """What a layer hands to the next one: its output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) and output else output


def scaled(value: Any, scale: float) -> Any:
    """An output with every floating-point tensor multiplied by `scale`."""
    if _tensor(value):
        return value * scale if value.is_floating_point() else value
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(scaled(item, scale) for item in value)
    return value


def _equal(one: Any, other: Any, objects: bool = False) -> bool:
    """Whether two arguments are the same object, or else the same numbers.

    Args:
        objects: equal tensors are not enough.
    """
    if _tensor(one) and _tensor(other):
        same = one.shape == other.shape and one.dtype == other.dtype and not objects
        return one is other or bool(same and torch.equal(one, other.to(one.device)))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(a, b, objects) for a, b in pairs)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[k], other[k], objects) for k in one)
    return one is other or (isinstance(one, int | float | str) and one == other)


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
