"""Running statistics of batch norms, pooled as Gaussians; see `plan._batch_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine._copy import FlatTask
from mergewise.engine._kernels import finite
from mergewise.engine._sources import Source
from mergewise.engine._task import Options
from mergewise.engine._work import Range, Work
from mergewise.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PoolTask(FlatTask):
    """A running mean, or with `means` a running variance, of several models; see `TensorTask`.

    Attributes:
        sources: the statistic of each model.
        weights: each model's share; they sum to 1 and none is negative.
        means: each model's running mean, if the statistic is a variance.
    """

    name: str
    shape: tuple[int, ...]
    sources: Sequence[Source]
    weights: Sequence[float]
    means: Sequence[Source]
    out_dtype: torch.dtype
    options: Options

    def prepare(self, shared: Any = None) -> Work:
        for source in (*self.sources, *self.means):
            yield from source.prepare()

    def merged(self, where: Range) -> Tensor:
        values = self._read(self.sources, where, 0)
        means = self._read(self.means, where, len(values))
        exact = pool(values, self.weights, means)
        out = exact.to(self.out_dtype)
        if self.options.check and not finite(out):
            raise NonFiniteError(
                f"tensor {self.name} holds numbers that do not fit "
                f"{str(self.out_dtype).removeprefix('torch.')}; choose a wider dtype"
            )
        return out

    def _read(self, sources: Sequence[Source], where: Range, slot: int) -> list[Tensor]:
        return [self._checked(s, s.read(*where, slot + i)) for i, s in enumerate(sources)]

    def _checked(self, source: Source, block: Tensor) -> Tensor:
        if not finite(block):
            place = f"{source.name} of {source.model}"
            if self.options.check:
                raise NonFiniteError(
                    f"tensor {source.name} of model {source.model} holds NaN or infinity; "
                    "repair that model, or pass --allow-nonfinite (allow_nonfinite=True)"
                )
            self.options.nonfinite.add(place)
        return block.to(torch.float64)


def pool(
    values: Sequence[Tensor], weights: Sequence[float], means: Sequence[Tensor] = ()
) -> Tensor:
    """The mean, or with `means` the variance, of a mixture, from each part's; all in float64.

    The variance is summed from what cannot be negative, so it is not either.
    """
    out = _weighted(values, weights)
    if means:
        centre = _weighted(means, weights)
        out = out + _weighted([(mean - centre).square() for mean in means], weights)
    return out


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    out = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        out = out + value * weight
    return out
