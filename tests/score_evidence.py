"""Evidence that scores read, and scores worked out in the plainest way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mergewise.evidence.statistics._file import Record, StatisticRecord, WrittenSum, key_of
from mergewise.evidence.statistics._file import write_evidence as write_file

SUMS = {"fisher": ("squares", "examples"), "input_moments": ("sum_squares", "tokens")}
Means = Mapping[str, Mapping[str, Tensor]]


def write_means(path: Path, means: Means, turned: Sequence[str] = ()) -> Path:
    """A file of these means, by statistic and tensor: thrice that, over three."""
    entries, record = {}, Record(turned=list(turned))
    for statistic, tensors in means.items():
        name, unit = SUMS[statistic]
        counts = {tensor: {unit: 3} for tensor in tensors}
        record.statistics[statistic] = StatisticRecord({}, counts)
        for tensor, mean in tensors.items():
            total = 3 * mean.double()
            entry = WrittenSum(tuple(mean.shape), "F64", lambda total=total: iter([total]))
            entries[key_of(tensor, statistic, name)] = entry
    write_file(path, record, entries)
    return path


def spread(mean: Tensor, shape: Sequence[int], turned: bool = False) -> Tensor:
    """Numbers by input channel, for every element of a weight; one loop over its elements."""
    width = math.prod(shape[1:])
    groups = 1 if turned else len(mean) // width
    out = torch.empty(shape[0], width)
    for row in range(shape[0]):
        first = row * groups // shape[0] * width
        out[row] = mean[row] if turned else mean[first : first + width]
    return out.reshape(tuple(shape))


def score_of(rule: str, deltas: Sequence[Tensor], metrics: Sequence[Tensor], expert: int) -> Tensor:
    """In float64: |d|, d² F, or ``d (2 sum F d - d sum F)``; with s in place of F by `metrics`."""
    delta = deltas[expert].double()
    if rule == "magnitude":
        return delta.abs()
    if "gain" not in rule:
        return delta.square() * metrics[expert].double()
    pull = sum(d.double() * f.double() for d, f in zip(deltas, metrics, strict=True))
    return delta * (2 * pull - delta * sum(f.double() for f in metrics))


def top(score: Tensor, density: float) -> Tensor:
    """Mask of the highest scores."""
    count = int(density * score.numel())
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True)[:count]] = True
    return mask.reshape(score.shape)
