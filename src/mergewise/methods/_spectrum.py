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

    def whole(self) -> Tensor:
        return (self.u * self.s) @ self.vh

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        return int((self.s > NOTHING * self.s[0]).sum()) if len(self.s) else 0


def full_svd(matrix: Tensor) -> Spectrum:
    """All min(rows, columns) triples, with any orthonormal vectors where the matrix is zero."""
    return Spectrum(*torch.linalg.svd(matrix.double(), full_matrices=False))


def svd(matrix: Tensor, most: int | None = None, least: float = 0.0) -> Spectrum:
    """The triples that are more than rounding, of the matrix or, as `least` says, of its inputs.

    Args:
        most: only the first so many of them.
        least: singular values up to this are left out.

    Returns:
        As many as the numerical rank: none for a matrix of zeros.
    """
    wide = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        found = _in_stages(wide.mT, most, least)
        return Spectrum(found.vh.mT, found.s, found.u.mT)
    return _in_stages(wide, most, least)


def _in_stages(matrix: Tensor, most: int | None, least: float) -> Spectrum:
    """The spectrum of a matrix that is not tall."""
    left = len(matrix) if most is None else min(most, len(matrix))
    parts = [Spectrum(matrix[:, :0], matrix[:0, 0], matrix[:0])]
    rest, basis, floor = matrix, None, 0.0
    while left > 0:
        u, s = left_vectors([rest])
        floor = floor or max(least, NOTHING * float(s[0]))
        clear = int((s > CLEAR * s[0]).sum())
        known = min(left, int((s[:clear] > floor).sum()))
        vh = (u[:, :known].mT @ rest) / s[:known, None]
        parts.append(Spectrum(_within(basis, u[:, :known]), s[:known], vh))
        left -= known
        if known < clear or clear == len(s):
            break
        basis = _within(basis, u[:, clear:])
        rest = u[:, clear:].mT @ rest
        rest = rest - (rest @ vh.mT) @ vh
        if float(rest.norm()) <= floor:
            break
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
    if not bool(gram.isfinite().all()):  # LAPACK may not come back
        return torch.full_like(gram, torch.nan), torch.full_like(gram[0], torch.nan)
    squares, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1), squares.flip(0).clamp(min=0.0).sqrt()


def joint_vectors(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As `left_vectors`, where the matrices together are wide; else those that are not noise."""
    rows, columns = matrices[0].shape
    if rows <= columns * len(matrices):
        return left_vectors(matrices)
    found = svd(torch.cat([matrix.double() for matrix in matrices], 1))
    return found.u, found.s


def joint_basis(matrices: Sequence[Tensor], tolerance: float, least: float = 0.0) -> Tensor:
    """An orthonormal basis [rows, r] of the columns of all matrices.

    Without directions weaker than `least`, or than the share `tolerance` of the strongest; digits
    of squares limit it to about 1e-7.
    """
    vectors, values = joint_vectors(matrices)
    floor = (max(tolerance, NOTHING) * values[:1]).clamp(min=least)
    return vectors[:, values > floor]


def polar(matrix: Tensor, fill: bool = False, least: float = 0.0) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, if it is wide): ``P Q^T`` of its SVD.

    Directions in which it is zero stay zero, unless `fill`: any vector would be as near there. So
    do those that it stretches no more than `least`.
    """
    known = full_svd(matrix) if fill else svd(matrix, least=least)
    return known.u @ known.vh


def isotropic(matrix: Tensor, fill: bool = False, least: float = 0.0) -> Tensor:
    """The matrix with all singular values at their mean over min(rows, columns).

    Directions in which it is zero, or stretches no more than `least`, are zero, unless `fill`.
    """
    found = full_svd(matrix) if fill else svd(matrix, least=least)
    return (found.u @ found.vh) * (found.s.sum() / min(matrix.shape))


def unsure(part: Spectrum, rounding: float) -> float:
    """How far a spectrum's vectors are turned by errors as large as `rounding`."""
    return rounding / float(part.s[-1]) if len(part.s) and rounding else 0.0


def decorrelated(parts: Sequence[Spectrum], rounding: float = 0.0) -> Tensor:
    """Spectra side by side with orthonormal bases: ``polar(U) diag(S) polar(V)``.

    Directions that parts share are the same up to what `rounding` has turned them.
    """
    least = max(unsure(part, rounding) for part in parts)
    u = polar(torch.cat([part.u for part in parts], 1), least=least)
    vh = polar(torch.cat([part.vh for part in parts], 0), least=least)
    return (u * torch.cat([part.s for part in parts])) @ vh
