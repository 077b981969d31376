"""Low-rank factors of matrices: exact for products of factors, randomised for dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_MORE = 10
"""Columns beyond the rank (oversampling)."""
_POWERS = 3
_FIRST = 16
_SMALL = 128
"""Matrices with a side up to this are decomposed exactly; it is as fast."""
_NOTHING = 1e-7
_CANCELLED = 1e-6


@dataclass(frozen=True)
class Rank:
    """How much is kept: a number of directions, or a share of the squared Frobenius norm.

    Attributes:
        most: the rank, or None for as many as `energy` takes.
        energy: above 0, at most 1.
    """

    most: int | None = None
    energy: float | None = None


def split(u: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """u @ diag(s) @ v as B and A, the singular values shared out evenly."""
    root = s.sqrt()
    return u * root, root[:, None] * v


def truncated(delta: Tensor, rank: Rank, seed: int = 0) -> tuple[Tensor, Tensor]:
    """B ``[rows, r]`` and A ``[r, columns]`` with B @ A near a matrix, in its own type.

    A randomised SVD with power iterations (Halko, Martinsson and Tropp, 2011, arXiv 0909.4061),
    wider until it holds what is asked for. Directions of no size are left out; r may be 0.
    """
    total = float(delta.double().square().sum())
    side = min(delta.shape)
    if total == 0:
        return delta.new_zeros(delta.shape[0], 0), delta.new_zeros(0, delta.shape[1])
    width = min(side, rank.most or _FIRST)
    while True:
        exact = side <= _SMALL or 2 * (width + _MORE) >= side
        u, s, v = _exact(delta) if exact else _randomised(delta, width, seed)
        kept = _count(s, total, rank)
        if exact or rank.energy is None or kept is not None:
            break
        width = min(side, 2 * width)
    count = len(s) if kept is None else kept
    if rank.most is not None:
        count = min(count, rank.most)
    return split(u[:, :count], s[:count], v[:count])


def _count(s: Tensor, total: float, rank: Rank) -> int | None:
    """How many directions are needed; None if there are not enough of them for the energy."""
    present = int((s > _NOTHING * s[0]).sum())
    if rank.energy is None:
        return present
    captured = s.double().square().cumsum(0) / total
    enough = (captured >= rank.energy - 1e-9).nonzero()
    return min(present, int(enough[0]) + 1) if len(enough) else None


def _exact(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return u, s, v


def _randomised(delta: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(delta.shape[1], width + _MORE, generator=draw, dtype=delta.dtype)
    found = torch.linalg.qr(delta @ start).Q
    for _ in range(_POWERS):
        found = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ found).Q).Q
    u, s, v = torch.linalg.svd(found.T @ delta, full_matrices=False)
    return (found @ u)[:, :width], s[:width], v[:width]


def recompressed(b: Tensor, a: Tensor, rank: Rank) -> tuple[Tensor, Tensor]:
    """The best factors of a rank for b @ a, without the product: the SVD of a small core."""
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)
    core = left.R @ right.R.T
    u, s, v = _exact(core)
    if not len(s) or float(s[0]) == 0:
        return b[:, :0], a[:0]
    total = float(s.double().square().sum())
    count = _count(s, total, rank) or len(s)
    if rank.most is not None:
        count = min(count, rank.most)
    new_b, new_a = split(u[:, :count], s[:count], v[:count])
    return left.Q @ new_b, new_a @ right.Q.T


def cut(b: Tensor, a: Tensor, size: float, rank: Rank) -> tuple[Tensor, Tensor]:
    """Factors of b @ a of limited rank; none if the parts of that sum cancel one another out.

    Args:
        size: of those parts, the sum of their norms.
    """
    if product_norm(b, a) <= _CANCELLED * size:
        return b[:, :0], a[:0]
    return (b, a) if rank == Rank() else recompressed(b, a, rank)


def product_norm(b: Tensor, a: Tensor) -> float:
    """The Frobenius norm of b @ a, without the product."""
    inner = (b.double().T @ b.double()) * (a.double() @ a.double().T)
    return float(inner.sum().clamp_min(0).sqrt())
