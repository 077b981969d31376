"""How much each tensor matters to an expert, measured; and whether densities agree with that.

A tensor's sensitivity is what the expert's loss on the validation split rises by when that tensor
alone is trimmed to `TRIMMED`, by element. Densities from it, in LEWIS's form, are the best that a
guide of that form could be told, so they say how much there is to gain by knowing the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mergewise.guides._densities import hold_mean, spread

TRIMMED = 0.3
LOW, HIGH = 0.3, 0.8
"""Densities of the least and the most sensitive tensor before the mean is held, as LEWIS has it."""
MEASURED = "measured"


@dataclass(frozen=True)
class LayerMap:
    """One number for every guided tensor of an expert.

    Attributes:
        arm: whose densities, or `MEASURED` for sensitivities.
    """

    seed: int
    expert: str
    arm: str
    calibration: str
    values: Mapping[str, float]


def sensitivities(
    names: Sequence[str],
    sizes: Mapping[str, int],
    loss: Callable[[Mapping[str, float]], float],
) -> dict[str, float]:
    """What trimming each tensor alone costs, by element.

    Args:
        sizes: elements of each tensor.
        loss: of the expert with these densities.
    """
    whole = loss(dict.fromkeys(names, 1.0))
    found = {}
    for name in names:
        trimmed = loss({**dict.fromkeys(names, 1.0), name: TRIMMED})
        found[name] = (trimmed - whole) / sizes[name]
    return found


def by_rank(
    found: Mapping[str, float], sizes: Mapping[str, int], mean: float
) -> dict[str, float]:  # fmt: skip
    """Densities in the order of sensitivities, with this mean over elements."""
    table = {"": dict(enumerate(found.values()))}
    elements = {"": {i: float(sizes[name]) for i, name in enumerate(found)}}
    held = hold_mean(spread(table, LOW, HIGH, "rank"), elements, mean)[""]
    return dict(zip(found, held.values(), strict=True))


def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Spearman's rank correlation over tensors; NaN where all of one are equal."""
    names = list(one)
    first, second = _ranks([one[n] for n in names]), _ranks([other[n] for n in names])
    mean = (len(names) - 1) / 2
    pairs = [(a - mean, b - mean) for a, b in zip(first, second, strict=True)]
    size = math.sqrt(math.fsum(a * a for a, _ in pairs) * math.fsum(b * b for _, b in pairs))
    return math.fsum(a * b for a, b in pairs) / size if size else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """Places from 0, equal values sharing theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]
