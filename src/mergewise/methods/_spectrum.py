"""Singular values and vectors, and what is made of them. All in float64.

`svd` works on the side of the smaller Gram matrix: one product, one symmetric eigenproblem, one
product more, a fifth to a third of the time of a bidiagonal decomposition. Squares lose digits of
small singular values, so a spectrum is taken in stages: what lies below `CLEAR` of the largest is
projected out and decomposed by itself. That gives singular values down to `NOTHING` of the
largest, and vectors orthonormal to about 1e-9; directions below it are left out. `full_svd` is
LAPACK's, for those who want them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = 1e-7
"""Relative to the largest: singular values that are rounding of float32."""
CLEAR = 1e-3
"""Relative to the largest: singular values that a Gram matrix gives with all digits needed."""


class Spectrum(NamedTuple):
    """``u @ diag(s) @ vh``, singular values descending.

    Attributes:
        u: [rows, r].
        s: [r].
        vh: [r, columns].
    """

    u: Tensor
    s: Tensor
    vh: Tensor

    def top(self, rank: int) -> Spectrum:
        """Its first `rank` triples."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.vh[:rank])

    def whole(self, values: Tensor | None = None) -> Tensor:
        """The matrix, or that of other singular values."""
        s = self.s if values is None else values
        if len(self.u) > self.vh.shape[1]:
            return self.u @ (s[:, None] * self.vh)
        return (self.u * s) @ self.vh

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        return int((self.s > NOTHING * self.s[0]).sum()) if len(self.s) else 0


def full_svd(matrix: Tensor, most: int | None = None) -> Spectrum:
    """All min(rows, columns) triples, with any orthonormal vectors where the matrix is zero.

    Or the first `most` of them.
    """
    found = Spectrum(*torch.linalg.svd(matrix.double(), full_matrices=False))
    return found if most is None else Spectrum(*(part.clone() for part in found.top(most)))


def svd(matrix: Tensor, most: int | None = None, least: float = 0.0) -> Spectrum:
    """The triples that are more than rounding, of the matrix or, as `least` says, of its inputs.

    Args:
        most: only the first so many of them.
        least: singular values up to this are left out.

    Returns:
        As many as the numerical rank: none for a matrix of zeros.
    """
    if matrix.shape[0] > matrix.shape[1]:
        found = _in_stages(matrix.double().mT, most, least)
        return Spectrum(found.vh.mT, found.s, found.u.mT)
    return _in_stages(matrix.double(), most, least)


def _in_stages(rest: Tensor, most: int | None, least: float) -> Spectrum:
    """The spectrum of a matrix that is not tall; `rest` is what is not decomposed yet."""
    left = len(rest) if most is None else min(most, len(rest))
    if left <= 0:
        return Spectrum(rest.new_empty(len(rest), 0), rest.new_empty(0), rest[:0].clone())
    parts: list[Spectrum] = []
    basis, floor = None, 0.0
    while left > 0:
        u, s = left_vectors([rest])
        floor = floor or max(least, NOTHING * float(s[0]))
        clear = int((s > CLEAR * s[0]).sum())
        known = min(left, int((s[:clear] > floor).sum()))
        vh = (u[:, :known].mT @ rest).div_(s[:known, None])
        # a view would keep all of u
        parts.append(Spectrum(_within(basis, u[:, :known].contiguous()), s[:known], vh))
        left -= known
        if known < clear or clear == len(s):
            break
        basis = _within(basis, u[:, clear:])
        rest = u[:, clear:].mT @ rest
        rest.addmm_(rest @ vh.mT, vh, alpha=-1)
        if float(rest.norm()) <= floor:
            break
    if len(parts) == 1:
        return parts[0]
    del rest, u, basis  # the parts are about to be copied
    us, values, vhs = zip(*parts, strict=True)
    return Spectrum(torch.cat(us, 1), torch.cat(values), torch.cat(vhs))


def _within(basis: Tensor | None, vectors: Tensor) -> Tensor:
    return vectors if basis is None else basis @ vectors


def left_vectors(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Left singular vectors [rows, rows] and values [rows] of matrices side by side.

    They are never put side by side. Values below about 1e-7 of the largest are noise.
    """
    rows = len(matrices[0])
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=matrices[0].device)
    for matrix in matrices:
        wide = matrix.double()
        gram += wide @ wide.mT
    del matrix, wide
    if not bool(gram.isfinite().all()):  # LAPACK may not come back
        return torch.full_like(gram, torch.nan), torch.full_like(gram[0], torch.nan)
    squares, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1), squares.flip(0).clamp(min=0.0).sqrt()


def joint_vectors(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As `left_vectors`, where the matrices together are wide; else those that are not noise."""
    rows, columns = matrices[0].shape
    if rows <= columns * len(matrices):
        return left_vectors(matrices)
    found = svd(torch.cat(list(matrices), 1))
    return found.u, found.s


def joint_basis(matrices: Sequence[Tensor], tolerance: float, least: float = 0.0) -> Tensor:
    """An orthonormal basis [rows, r] of the columns of all matrices.

    Without directions weaker than `least`, or than the share `tolerance` of the strongest; digits
    of squares limit it to about 1e-7.
    """
    vectors, values = joint_vectors(matrices)
    floor = (max(tolerance, NOTHING) * values[:1]).clamp(min=least)
    return vectors[:, values > floor]


def polar(matrix: Tensor, fill: bool = False, doubts: Tensor | None = None) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, if it is wide): ``P Q^T`` of its SVD.

    Directions in which it is zero stay zero, unless `fill`: any vector would be as near there. So
    do those that it stretches no more than the columns' errors may.

    Args:
        doubts: how large each column's error may be.
    """
    if fill or doubts is None:
        known = full_svd(matrix) if fill else svd(matrix)
        return known.u @ known.vh
    known = svd(matrix, least=float(doubts.min()) if len(doubts) else 0.0)
    sure = known.s > (known.vh.square() @ doubts.square()).sqrt()
    return known.u @ known.vh.mul_(sure[:, None])


def isotropic(matrix: Tensor, fill: bool = False, least: float = 0.0) -> Tensor:
    """The matrix with all singular values at their mean over min(rows, columns).

    Directions in which it is zero, or stretches no more than `least`, are zero, unless `fill`.
    """
    found = full_svd(matrix) if fill else svd(matrix, least=least)
    return (found.u @ found.vh).mul_(found.s.sum() / min(matrix.shape))


def decorrelated(parts: Sequence[Spectrum], rounding: float = 0.0) -> Tensor:
    """Spectra side by side with orthonormal bases: ``polar(U) diag(S) polar(V)``.

    Directions that parts share are the same up to what `rounding` has turned them.
    """
    s = torch.cat([part.s for part in parts])
    doubts = rounding / s if rounding else None
    u = polar(torch.cat([part.u for part in parts], 1), doubts=doubts)
    v = polar(torch.cat([part.vh for part in parts], 0).mT, doubts=doubts)
    return (u * s) @ v.mT


# How many numbers the functions hold at once, each argument taken for one in float64.


def svd_room(rows: int, columns: int, fill: bool = False) -> float:
    """Of `svd`, or of `full_svd`; of `isotropic`, too."""
    size, square = rows * columns, min(rows, columns) ** 2
    if fill:
        return 3.0 * size + 5.0 * square
    return size + max(5.0 * square, size + 2.0 * square)


def decorrelated_room(rows: int, columns: int, fill: bool = False) -> float:
    """Of spectra being found, of full rank together, and made orthonormal; see `decorrelated`."""
    size, square = rows * columns, min(rows, columns) ** 2
    left, right = min(rows, columns) * rows, min(rows, columns) * columns
    last = left + max(svd_room(rows, columns, fill), 3.0 * right + square)
    return left + right + max(svd_room(rows, columns, fill), last, 2.0 * left + right + size)


def joint_room(rows: int, columns: int, matrices: int) -> float:
    """Of `joint_basis` and `joint_vectors`, of so many matrices of float32."""
    if rows <= columns * matrices:
        return max(4.0 * rows**2, rows * columns + 2.0 * rows**2)
    size = rows * columns * matrices
    return size / 2 + svd_room(rows, columns * matrices)
