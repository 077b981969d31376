"""Orthogonal matching pursuit, many targets at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.transforms._transplant._combine import Atoms, Combination, Tick, batch_size

if TYPE_CHECKING:
    from torch import Tensor

_ZERO = 1e-6
"""Relative to a vector's length: what float32 cannot tell from nothing."""


def pursue(targets: Tensor, atoms: Atoms, k: int, tick: Tick) -> tuple[Combination, float]:
    """Approximate each target by `k` atoms, chosen greedily.

    In each step the atom is taken that the residual points along most (the cosine decides, so
    lengths of atoms do not), and the weights of all atoms so far are fitted anew by least squares.

    Args:
        targets: [m, width] of the donor, of any floating-point type.
        tick: called with targets done, and all.

    Returns:
        The combination, and the mean of the residuals' lengths relative to the targets'.

    Source: Goddard & Fernandes Neto 2025, arXiv 2506.06607 (the abstract was read: two phases, the
    coefficients reused in the other model's space); the algorithm is that of Pati, Rezaiifar &
    Krishnaprasad 1993. Memory: the atoms once, ``width * k`` and n numbers for each of a batch.
    """
    k = min(k, len(atoms), targets.shape[1])
    size = batch_size(2 * targets.shape[1] * k + 2 * len(atoms))
    index, weights, left = [], [], 0.0
    for start in range(0, len(targets), size):
        batch = targets[start : start + size].to(atoms.unit.device, torch.float32)
        one = _Pursuit(batch, atoms.unit, k)
        for step in range(k):
            one.step(step)
        index.append(one.index)
        weights.append(one.weights() / atoms.norms[one.index])
        left += float(one.relative().sum())
        tick(start + len(batch), len(targets))
    found = atoms.combination(torch.cat(index), torch.cat(weights))
    return found, left / len(targets)


class _Pursuit:
    """A batch of targets: an orthonormal basis of the chosen atoms is grown by Gram-Schmidt."""

    def __init__(self, targets: Tensor, unit: Tensor, k: int) -> None:
        b, width = targets.shape
        self.unit, self.residual = unit, targets.clone()
        self.lengths = targets.norm(dim=1)
        self.index = torch.zeros(b, k, dtype=torch.long, device=targets.device)
        self.basis = targets.new_zeros(b, k, width)
        self.upper = targets.new_zeros(b, k, k)  # atoms = upper^T basis
        self.parts = targets.new_zeros(b, k)

    def step(self, step: int) -> None:
        score = (self.residual @ self.unit.T).abs_()
        score.scatter_(1, self.index[:, :step], -1.0)
        pick = score.argmax(1)
        self.index[:, step] = pick
        fresh, length = self._orthogonal(self.unit[pick], step)
        useful = (length > _ZERO) & (self.residual.norm(dim=1) > _ZERO * self.lengths)
        fresh = torch.where(useful[:, None], fresh / length.clamp_min(_ZERO)[:, None], 0.0)
        self.upper[:, step, step] = torch.where(useful, length, 1.0)
        self.basis[:, step] = fresh
        part = (fresh * self.residual).sum(1)
        self.parts[:, step] = part
        self.residual -= part[:, None] * fresh

    def _orthogonal(self, atoms: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the basis lacks of atoms, twice over because the first time leaves rounding."""
        basis = self.basis[:, :step]
        for _ in range(2):
            along = torch.einsum("bsd,bd->bs", basis, atoms)
            atoms = atoms - torch.einsum("bs,bsd->bd", along, basis)
            self.upper[:, :step, step] += along
        return atoms, atoms.norm(dim=1)

    def weights(self) -> Tensor:
        """Of the unit atoms: [b, k]."""
        solved = torch.linalg.solve_triangular(self.upper, self.parts[..., None], upper=True)
        return solved[..., 0]

    def relative(self) -> Tensor:
        """Lengths of the residuals, relative to the targets': [b]."""
        lengths: Tensor = self.residual.norm(dim=1) / self.lengths.clamp_min(1e-30)
        return lengths
