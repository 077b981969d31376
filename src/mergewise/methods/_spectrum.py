"""Singular values and vectors, and what is made of them.

All in float64: the squares of a Gram matrix lose half of the digits, which leaves those of
float32 weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = 1e-7
"""Relative to the largest: singular values that are rounding of float32."""


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


def svd(matrix: Tensor) -> Spectrum:
    """All singular values and vectors, float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Spectrum(u, s, vh)


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, if it is wide): ``P Q^T`` of its SVD.

    Directions in which it is zero stay zero: any vector would be as near there.
    """
    found = svd(matrix)
    known = found.top(found.rank)
    return known.u @ known.vh
