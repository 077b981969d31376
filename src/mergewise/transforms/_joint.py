"""How the channels of several models vary together on the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import TransformError
from mergewise.transforms._measure import Point, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed


@dataclass
class Joint:
    """Sums over rows of n models, in float64.

    Attributes:
        total: [n, channels].
        products: [n, n, channels].
    """

    rows: int = 0
    total: Any = 0.0
    products: Any = 0.0

    def add(self, values: Tensor) -> None:
        """Add what the models show at the same rows: [n, rows, channels]."""
        wide = values.double()
        self.rows += wide.shape[1]
        self.total = self.total + wide.sum(1)
        self.products = self.products + torch.einsum("irc,jrc->ijc", wide, wide)

    @property
    def mean(self) -> Tensor:
        """[n, channels]."""
        return self.total / self.rows

    @property
    def covariance(self) -> Tensor:
        """[n, n, channels]."""
        return self.products / self.rows - self.mean[:, None] * self.mean[None]


def averaged_std(weights: Tensor, covariance: Tensor) -> Tensor:
    """Standard deviation of a weighted average, ``sqrt(a^T C a)``.

    For two models with correlation c that is ``sqrt(a^2 s^2 + b^2 t^2 + 2 a b s t c)``.

    Args:
        weights: [n].
        covariance: [n, n, channels].

    Returns:
        [channels].
    """
    variance = torch.einsum("i,ijc,j->c", weights, covariance, weights)
    return variance.clamp_min(0).sqrt()


def joint_moments(
    models: Sequence[LiveModel],
    points: Sequence[Sequence[Point]],
    batches: Sequence[Fed],
    tick: Any = None,
) -> dict[str, Joint]:
    """Run all models over the same batches, side by side.

    Args:
        points: of each model, of the same paths.
    """
    found = {point.path: Joint() for point in points[0]}
    for number, fed in enumerate(batches):
        each = [_rows(model, own, fed) for model, own in zip(models, points, strict=True)]
        for path, joint in found.items():
            values = [rows[path] for rows in each]
            if len({tuple(value.shape) for value in values}) > 1:
                raise TransformError(f"{path}: the models show different numbers of rows there")
            joint.add(torch.stack([value.cpu() for value in values]))
        if tick is not None:
            tick(number + 1, len(batches))
    return found


def _rows(model: LiveModel, points: Sequence[Point], fed: Fed) -> Mapping[str, Tensor]:
    held: dict[str, list[Tensor]] = {}
    watch = Watch(model, points, collect=lambda p, rows: held.setdefault(p.path, []).append(rows))
    watch.run([fed])
    return {path: torch.cat(parts) for path, parts in held.items()}
