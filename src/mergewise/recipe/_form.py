"""The key `form`: a result that is not one dense checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mergewise.recipe._keys import check_keys
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Problems, shorten

_NAMES = ("adapter",)
_KEYS = ("name", "rank", "energy", "space", "rest")


@dataclass(frozen=True)
class Form:
    """What the last stage makes instead of a checkpoint.

    Attributes:
        name: ``adapter``: a LoRA of the recipe's base.
        rank: of each weight, at most; None for as many as there are.
        energy: the least rank that keeps this share of the squared norm; None for no such limit.
        space: ``delta``, what the result has more than the base; or ``factor``, the adapters' A
            and B merged apart.
        rest: changed tensors that have no factors are stored ``whole``, or left out (``skip``).
    """

    name: str
    rank: int | None = None
    energy: float | None = None
    space: Literal["delta", "factor"] = "delta"
    rest: Literal["whole", "skip"] = "whole"


def read_form(node: Node | None, problems: Problems) -> Form | None:
    """A form's name, or a mapping with its `name` and settings."""
    if node is None:
        return None
    if isinstance(node.value, dict):
        check_keys(node, _KEYS, "form: ", problems)
        name = node.get("name")
    else:
        name = node
    if name is None or name.value not in _NAMES:
        got = shorten(name.raw) if name is not None and name.raw else node.kind
        problems.error(
            (name or node).position,
            f"form: a name, or a mapping with a `name`, expected: {', '.join(_NAMES)}; got {got}",
        )
        return None
    settings = {
        "rank": _read(node, "rank", "a whole number from 1 on", _is_rank, problems),
        "energy": _read(node, "energy", "a share above 0 and at most 1", _is_share, problems),
        "space": _read(
            node, "space", "delta or factor", ("delta", "factor").__contains__, problems
        ),
        "rest": _read(node, "rest", "whole or skip", ("whole", "skip").__contains__, problems),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    if given.get("space") == "factor" and given.keys() & {"rank", "energy"}:
        problems.error(
            node.position,
            "form: space: factor keeps the adapters' rank; leave rank and energy out",
        )
    return Form(str(name.value), **given)


def _read(
    node: Node, key: str, expected: str, fits: Callable[[Any], bool], problems: Problems
) -> Any:
    child = node.get(key)
    if child is None or (not isinstance(child.value, dict | list) and fits(child.value)):
        return child and child.value
    got = shorten(child.raw) or child.kind
    problems.error(child.position, f"form.{key}: {expected} expected, got {got}")
    return None


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 20


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= 1
