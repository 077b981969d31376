"""New rows as sparse combinations of a model's own: which of them, and how much of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BATCH_BYTES = 1 << 28
"""What the buffers of a batch may take together."""

Tick = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Combination:
    """``new[i] = sum_j weights[i, j] * own[rows[i, j]]``.

    Attributes:
        rows: [new, k], rows of the model.
        weights: [new, k], float32.
    """

    rows: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def apply(self, own: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The new rows in batches, float32, each with the number of its first.

        Args:
            own: [rows, width], of any floating-point type.
        """
        size = batch_size(self.rows.shape[1] * own.shape[1])
        for start in range(0, len(self), size):
            rows, weights = self.rows[start : start + size], self.weights[start : start + size]
            picked = own[rows].float()
            yield start, torch.einsum("bk,bkd->bd", weights, picked)


def batch_size(numbers: int) -> int:
    """How many at a time, if each needs so many float32 numbers."""
    return max(1, min(4096, BATCH_BYTES // (4 * max(1, numbers))))


class Atoms:
    """The rows of the donor that both models have, each of length one, and their lengths.

    Rows of zeros are left out: they have no direction.

    Args:
        rows: [n, width] of the donor, of any floating-point type.
        own: [n], the model's row for each.
        device: where it is computed.
    """

    def __init__(self, rows: Tensor, own: Tensor, device: str = "cpu") -> None:
        rows = rows.to(device, torch.float32)
        norms = rows.norm(dim=1)
        used = norms > 0
        self.norms = norms[used]
        self.own = own.to(device)[used]
        self.unit = rows[used].div_(self.norms[:, None])

    def __len__(self) -> int:
        return len(self.norms)

    def combination(self, index: Tensor, weights: Tensor) -> Combination:
        """A combination of these atoms, by the model's rows."""
        return Combination(self.own[index].cpu(), weights.float().cpu())
