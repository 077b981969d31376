"""Where a tensor lies between the first and the last layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.plan import StagePlan


def depths(stage: StagePlan) -> dict[str, float]:
    """For every merged tensor of a layer, l / (L - 1): 0 in the first layer, 1 in the last.

    Towers (layers under another prefix) are counted apart; a tower of one layer is at 0.
    """
    names = [name for name, tensor in stage.tensors.items() if tensor.fate == "merge"]
    inside = [name for name in names if layer_index(name) is not None]
    last: dict[str | None, int] = {}
    for name in inside:
        prefix = layer_prefix(name)
        last[prefix] = max(last.get(prefix, 0), layer_index(name) or 0)
    return {n: (layer_index(n) or 0) / max(1, last[layer_prefix(n)]) for n in inside}


def by_depth(stage: StagePlan, curve: Callable[[float], float]) -> dict[str, float]:
    """`curve` at every layer's tensors."""
    return {name: curve(depth) for name, depth in depths(stage).items()}


def curve_through(points: Iterable[float], shape: str) -> Callable[[float], float]:
    """A curve over [0, 1] through evenly spaced points.

    Args:
        shape: ``linear`` between points; ``cosine``, which is level at each point; ``step``,
            which is each point's value over an equal share of the layers.
    """
    known = list(points)

    def at(depth: float) -> float:
        if shape == "step":
            return known[min(len(known) - 1, int(depth * len(known)))]
        place = depth * (len(known) - 1)
        first = min(int(place), max(0, len(known) - 2))
        share = place - first
        if shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        following = known[min(first + 1, len(known) - 1)]
        return known[first] + share * (following - known[first])

    return at
