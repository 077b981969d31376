"""New rows from the nearest tokens of the donor's space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.transforms._transplant._combine import Atoms, Combination, Tick, batch_size

if TYPE_CHECKING:
    from torch import Tensor

_RIDGE = 1e-6


def interpolate(
    targets: Tensor, atoms: Atoms, k: int, metric: str, weighting: str, tick: Tick
) -> tuple[Combination, float]:
    """Approximate each target by its `k` nearest atoms.

    Args:
        targets: [m, width] of the donor.
        metric: ``cosine`` or ``euclidean``.
        weighting: ``distance_proportional`` (to 1 / distance; they sum to one), ``barycentric``
            (least squares under the condition that they sum to one, as in locally linear
            embedding, Roweis & Saul 2000), or ``least_squares`` (the shortest solution).

    Returns:
        The combination, and the mean of the residuals' lengths relative to the targets'.
    """
    k = min(k, len(atoms))
    size = batch_size(2 * targets.shape[1] * k * 2 + 2 * len(atoms) + 4 * k * k)
    index, weights, left = [], [], 0.0
    for start in range(0, len(targets), size):
        batch = targets[start : start + size].to(atoms.unit.device, torch.float32)
        near = _nearest(batch, atoms, k, metric)
        rows = atoms.unit[near].double() * atoms.norms[near][..., None].double()
        wide = batch.double()
        found = _WEIGHTINGS[weighting](wide, rows, metric)
        residual = (wide - torch.einsum("bk,bkd->bd", found, rows)).norm(dim=1)
        left += float((residual / wide.norm(dim=1).clamp_min(1e-30)).sum())
        index.append(near)
        weights.append(found)
        tick(start + len(batch), len(targets))
    return atoms.combination(torch.cat(index), torch.cat(weights)), left / len(targets)


def _nearest(targets: Tensor, atoms: Atoms, k: int, metric: str) -> Tensor:
    along = targets @ atoms.unit.T
    if metric == "cosine":
        return along.topk(k, dim=1).indices
    # |t - a|^2 without |t|^2, which is the same for all
    closeness = along.mul_(2 * atoms.norms).sub_(atoms.norms**2)
    return closeness.topk(k, dim=1).indices


def _by_distance(targets: Tensor, rows: Tensor, metric: str) -> Tensor:
    """[b, k]; a row that is the target itself takes nearly all."""
    if metric == "cosine":
        distance = 1 - torch.cosine_similarity(targets[:, None], rows, dim=-1)
    else:
        distance = (targets[:, None] - rows).norm(dim=-1)
    weights = 1 / distance.clamp_min(1e-9)
    return weights / weights.sum(1, keepdim=True)


def _barycentric(targets: Tensor, rows: Tensor, metric: str) -> Tensor:
    apart = rows - targets[:, None]
    gram = apart @ apart.mT
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    gram = gram + _RIDGE * scale[:, None, None] * torch.eye(gram.shape[1]).to(gram)
    weights = torch.linalg.solve(gram, gram.new_ones(*gram.shape[:2], 1))[..., 0]
    weights = weights / weights.sum(1, keepdim=True)
    return weights.where(weights.isfinite(), 1 / gram.shape[1])


def _least_squares(targets: Tensor, rows: Tensor, metric: str) -> Tensor:
    return torch.einsum("bkd,bd->bk", torch.linalg.pinv(rows.mT), targets)


_WEIGHTINGS = {
    "distance_proportional": _by_distance,
    "barycentric": _barycentric,
    "least_squares": _least_squares,
}
