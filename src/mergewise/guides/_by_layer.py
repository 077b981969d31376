"""Weights by layer, written as one condition for each layer where that says it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.guides._base import Ask
from mergewise.guides._document import Edit

Weights = Mapping[str, float]
"""By tensor."""


def by_layer(ask: Ask, each: Sequence[Weights], other: Sequence[float]) -> Edit:
    """An edit of the document that gives every expert its weights.

    Args:
        each: for every expert, by tensor.
        other: for every expert, of all other tensors.
    """
    names = list(ask.stage.tensors)
    found = [conditions(own, rest, names) for own, rest in zip(each, other, strict=True)]

    def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
        for expert, lines in zip(ask.experts, found, strict=True):
            model = document["models"][expert.index]
            model["parameters"] = {**(model.get("parameters") or {}), "weight": lines}
        return [document]

    return edit


def conditions(weights: Weights, other: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """``{filter, value}`` of which the first that matches a tensor is its weight.

    Args:
        names: of all tensors; what has no weight gets `other`.
    """
    wanted = {name: _short(weights.get(name, other)) for name in names}
    found = _layers(wanted)
    # a name that is a part of other names, or a layer's of another stack's
    while wrong := [n for n in names if _first(found, n, _short(other)) != wanted[n]]:
        found |= {name: wanted[name] for name in wrong if name not in found}
    ordered = sorted(found, key=lambda part: (-len(part), part))
    lines = [{"filter": part, "value": found[part]} for part in _tidied(ordered, names)]
    return [*lines, {"value": _short(other)}]


def _layers(wanted: Weights) -> dict[str, float]:
    """By the beginning of a layer's names, of layers with one weight."""
    layers: dict[str, set[float]] = {}
    for name, value in wanted.items():
        if layer_index(name) is not None:
            layers.setdefault(f"{layer_prefix(name)}{layer_index(name)}.", set()).add(value)
    return {part: min(values) for part, values in layers.items() if len(values) == 1}


def _first(found: Weights, name: str, other: float) -> float:
    part = max((p for p in found if p in name), key=len, default=None)
    return other if part is None else found[part]


def _tidied(ordered: Sequence[str], names: Sequence[str]) -> list[str]:
    """In the order of layers, if no filter stands in another's way then."""
    alone = all(sum(part in name for part in ordered) <= 1 for name in names)
    if not alone:
        return list(ordered)
    return sorted(ordered, key=lambda p: (layer_prefix(p) or "", layer_index(p) or 0, p))


def _short(value: float) -> float:
    return float(f"{value:.9g}")
