"""How two vocabularies relate, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergewise.checkpoint import shown


@dataclass(frozen=True)
class Difference:
    """What two vocabularies have not in common.

    Attributes:
        moved: tokens of both with different ids.
        only_first, only_second: tokens of one, by id.
        contradicts: whether some id stands for different tokens.
    """

    moved: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    contradicts: bool

    @property
    def same(self) -> bool:
        return not (self.moved or self.only_first or self.only_second)

    def tell(self, first: str, second: str) -> str:
        """In one line."""
        parts = []
        if self.moved:
            parts.append(f"{_count(self.moved)} with other ids{_such(self.moved)}")
        if self.only_first:
            parts.append(f"{_count(self.only_first)} only in {first}{_such(self.only_first)}")
        if self.only_second:
            parts.append(f"{_count(self.only_second)} only in {second}{_such(self.only_second)}")
        return "; ".join(parts) or "the same tokens with the same ids"


def compare(first: Mapping[str, int], second: Mapping[str, int]) -> Difference:
    """Compare ids by token of two models."""
    if first == second:
        return Difference((), (), (), False)
    a, b = first.keys(), second.keys()
    moved = sorted((t for t in a & b if first[t] != second[t]), key=lambda t: first[t])
    only_a, only_b = sorted(a - b, key=lambda t: first[t]), sorted(b - a, key=lambda t: second[t])
    ids = set(first.values())
    clash = bool(moved) or any(second[t] in ids for t in only_b)
    return Difference(tuple(moved), tuple(only_a), tuple(only_b), clash)


def _count(tokens: tuple[str, ...]) -> str:
    return f"{len(tokens):,} token{'s' * (len(tokens) > 1)}"


def _such(tokens: tuple[str, ...]) -> str:
    return f" ({', '.join(shown(t, 30) for t in tokens[:3])}{', …' if tokens[3:] else ''})"
