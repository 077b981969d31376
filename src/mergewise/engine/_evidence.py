"""Statistics beside weights: each expert's means, read by range as tensors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.engine._kernels import FINITE_PIECE, finite
from mergewise.engine._sources import Source, TensorSource
from mergewise.engine._work import Work
from mergewise.errors import EvidenceError
from mergewise.methods import Method, Settings
from mergewise.plan import check_shape, is_turned, of_groups

if TYPE_CHECKING:
    from torch import Tensor

Statistics = Mapping[str, Mapping[str, "Tensor"]]
"""One model's means in memory: by statistic, then by tensor."""


class MeanSource:
    """A sum divided by its count, as float32.

    Args:
        source: the sum.
        count: what it runs over.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._factor = 1.0 / count
        self.model = source.model
        self.name = source.name
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
        return mean


def in_memory(
    method: Method, settings: Settings, models: Sequence[Statistics], tensor: Tensor, name: str
) -> tuple[list[list[Source]], bool]:
    """Sources of what the method needs of each expert; [] if some expert's statistics lack it.

    Beside them whether the tensor is stored [inputs, outputs]; a square one is taken not to be.

    Raises:
        EvidenceError: if a statistic's shape does not fit the tensor.
    """
    found: list[list[Source]] = []
    shape, turned = tuple(tensor.shape), False
    for need in method.needs(settings):
        each: list[Source] = []
        for i, model in enumerate(models):
            mean = model.get(need.statistic, {}).get(name)
            if mean is None:
                return [], False
            source = TensorSource(f"evidence[{i}]", f"{need.statistic} of {name}", mean)
            if of_groups(need, shape, source.shape):
                return [], False
            check_shape(need, shape, source.shape, source.model, name)
            turned = turned or is_turned(need, shape, source.shape, False)
            each.append(MeanSource(source, 1))
        found.append(each)
    return found, turned
