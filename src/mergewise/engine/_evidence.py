"""Statistics beside weights: each expert's means, read by range as tensors are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.constants import PLAIN_BLOCK_ELEMENTS
from mergewise.engine._kernels import FINITE_PIECE, finite
from mergewise.engine._sources import Source, TensorSource
from mergewise.engine._work import Parallel, Work
from mergewise.errors import EvidenceError
from mergewise.methods import Need
from mergewise.plan import check_shape, is_turned, left_out, suited

if TYPE_CHECKING:
    from torch import Tensor

Statistics = Mapping[str, Mapping[str, "Tensor"]]
"""One model's means in memory: by statistic, then by tensor."""
WHOLE = ("matrix", "output_matrix")
"""Kinds of needs whose numbers are read when they are used only: there are many of them."""


class MeanSource:
    """A sum divided by its count, as float32.

    Args:
        source: the sum.
        count: what it runs over.
        positive: a number below zero is damage.
    """

    def __init__(self, source: Source, count: int, positive: bool = False) -> None:
        self._source = source
        self._positive = positive
        self._factor = 1.0 / count
        self.model = source.model
        self.name = told(source.name)
        self.shape = source.shape
        self.dtype = torch.float32

    def prepare(self) -> Work:
        yield from self._source.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        mean = torch.empty(size, dtype=self.dtype)
        for first in range(0, size, FINITE_PIECE):
            count = min(FINITE_PIECE, size - first)
            part = self._source.read(start + first, count, slot)
            # sums over many examples may leave float32's range before they are divided
            mean[first : first + count] = part.double() * self._factor
        if not finite(mean):
            raise EvidenceError(
                f"{self.model}: {self.name} holds NaN or infinity; collect it again, and see "
                "that the model gives finite losses on that data"
            )
        if self._positive and size and float(mean.min()) < 0:
            raise EvidenceError(
                f"{self.model}: {self.name} holds numbers below zero, which sums of squares and "
                "sizes never are; the file is damaged, collect it again"
            )
        return mean

    def look(self) -> Work:
        """Read all of it, for an error that is better known before other work."""
        starts = range(0, math.prod(self.shape), PLAIN_BLOCK_ELEMENTS)
        yield Parallel(self._look, starts)

    def _look(self, start: int) -> None:
        self.read(start, min(PLAIN_BLOCK_ELEMENTS, math.prod(self.shape) - start), 0)


def told(key: str) -> str:
    """A sum for a message: of a file's ``TENSOR::STATISTIC.SUM``, the statistic and the tensor."""
    tensor, mark, rest = key.rpartition("::")
    return f"{rest.partition('.')[0]} of {tensor}" if mark else key


class SpreadSource:
    """Numbers repeated along some axes of a tensor.

    Args:
        means: of the tensor's shape, with 1 for those axes.
        shape: of the tensor.
    """

    def __init__(self, means: Source, shape: tuple[int, ...]) -> None:
        self._means = means
        self.model = means.model
        self.name = means.name
        self.shape = shape
        self.dtype = torch.float32
        self._known: Tensor | None = None

    def prepare(self) -> Work:
        yield from self._means.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        if self._known is None:
            # kept: little beside the tensor. Two threads may both read it, and find the same
            count = math.prod(self._means.shape)
            self._known = self._means.read(0, count, slot).reshape(self._means.shape)
        if not self.shape:
            return self._known.reshape(-1)[start : start + size]
        width = max(1, math.prod(self.shape[1:]))
        first, last = start // width, -(-(start + size) // width)
        rows = self._known if len(self._known) == 1 else self._known[first:last]
        flat = rows.expand(last - first, *self.shape[1:]).reshape(-1)
        return flat[start - first * width :][:size]


class ColumnSource:
    """Numbers by input channel, repeated for every element of a weight.

    A convolution's channel is one element of its patch; each group of one has its own.

    Args:
        means: one for every input channel.
        shape: of the weight.
        turned: it is stored [inputs, outputs].
    """

    def __init__(self, means: Source, shape: tuple[int, ...], turned: bool) -> None:
        self._means = means
        self.model = means.model
        self.name = means.name
        self.shape = shape
        self.dtype = torch.float32
        self._turned = turned
        self._width = math.prod(shape[1:])
        self._known: tuple[Tensor, int] | None = None

    def prepare(self) -> Work:
        yield from self._means.prepare()

    def read(self, start: int, size: int, slot: int) -> Tensor:
        table, rows_each = self._known or self._read(slot)
        first, last = start // self._width, -(-(start + size) // self._width)
        if len(table) == 1:
            rows = table.expand(last - first, self._width)
        else:
            rows = table[torch.arange(first, last) // rows_each].expand(-1, self._width)
        flat = rows.reshape(-1)
        return flat[start - first * self._width :][:size]

    def _read(self, slot: int) -> tuple[Tensor, int]:
        """The means as rows of the weight's matrix, and for how many of its rows each stands."""
        count = math.prod(self._means.shape)
        means = self._means.read(0, count, slot)
        rows = means.view(-1, 1 if self._turned else self._width)
        # kept: little beside the weight. Two threads may both read it, and find the same
        self._known = rows, self.shape[0] // len(rows)
        return self._known


def in_memory(
    needs: Sequence[Need],
    models: Sequence[Statistics],
    base: Statistics | None,
    tensor: Tensor,
    name: str,
) -> tuple[list[list[Source]], bool]:
    """Sources of what a method needs of each model; [] if some model's statistics lack it.

    Beside them whether the tensor is stored [inputs, outputs]; a square one is taken not to be.

    Raises:
        EvidenceError: if a statistic's shape does not fit the tensor, or its numbers are damaged.
    """
    means: list[list[MeanSource]] = []
    found: list[list[Source]] = []
    shape, turned = tuple(tensor.shape), False
    for need in (suited(need, shape) for need in needs):
        each: list[MeanSource] = []
        whose = {f"evidence[{i}]": model for i, model in enumerate(models)}
        if need.of == "base":
            whose = {"base_evidence": base or {}}
        for label, model in whose.items():
            mean = model.get(need.statistic, {}).get(name)
            if mean is None:
                return [], False
            source = TensorSource(label, f"{need.statistic} of {name}", mean)
            if left_out(need, shape, source.shape):
                return [], False
            turned = turned or is_turned(need, shape, source.shape, False)
            check_shape(need, shape, source.shape, label, name, turned)
            each.append(MeanSource(source, 1, need.positive))
            if need.per not in WHOLE:
                each[-1].read(0, mean.numel(), 0)
        means.append(each)
    for need, each in zip(needs, means, strict=True):
        found.append(spread(need, each, shape, turned))
    return found, turned


def spread(
    need: Need, means: Sequence[Source], shape: tuple[int, ...], turned: bool
) -> list[Source]:
    """Means as a task is given them: those by channel repeated for every element."""
    per = suited(need, shape).per
    if per == "spread":
        return [SpreadSource(mean, shape) for mean in means]
    if per == "column":
        return [ColumnSource(mean, shape, turned) for mean in means]
    return list(means)
