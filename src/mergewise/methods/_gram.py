"""The Gram matrix of a tensor's vectors, and arithmetic on the sphere in its terms.

Methods on directions and angles (slerp, nuslerp, multislerp, karcher, model_stock) need only the
inner products of their vectors; their result is a linear combination of them. So a vector is
held here as its coefficients, and `inner` measures with the Gram matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Gram = list[list[float]]
"""Inner products, summed in double precision."""

BLUR = 3e-4
"""Lengths of sums of unit vectors below this are rounding of the float32 products, not lengths."""


def gram_terms(vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Elementwise products whose sums are the upper triangle of the Gram matrix."""
    return {
        f"{i},{j}": vectors[i] * vectors[j]
        for i in range(len(vectors))
        for j in range(i, len(vectors))
    }


def gram_matrix(totals: Mapping[str, float]) -> Gram:
    """The matrix from the sums of `gram_terms`."""
    size = math.isqrt(2 * len(totals))
    return [[totals[f"{min(i, j)},{max(i, j)}"] for j in range(size)] for i in range(size)]


def norms(gram: Gram) -> list[float]:
    """The vectors' lengths."""
    return [math.sqrt(max(gram[i][i], 0.0)) for i in range(len(gram))]


def cosine(gram: Gram, i: int, j: int) -> float:
    """The cosine between two vectors, within [−1, 1]; 0 if either has no length."""
    length = math.sqrt(max(gram[i][i], 0.0)) * math.sqrt(max(gram[j][j], 0.0))
    return max(-1.0, min(1.0, gram[i][j] / length)) if length > 0 else 0.0


def inner(gram: Gram, a: Sequence[float], b: Sequence[float]) -> float:
    """The inner product of two combinations given by their coefficients."""
    rows = [sum(g * y for g, y in zip(row, b, strict=True)) for row in gram]
    return sum(x * r for x, r in zip(a, rows, strict=True))


def length(gram: Gram, a: Sequence[float]) -> float:
    """The length of a combination."""
    return math.sqrt(max(inner(gram, a, a), 0.0))


def straight(cos: float) -> bool:
    """Whether two vectors have no arc between them: they point the same or the opposite way.

    Just short of opposite, the arc's coefficients grow without bound and amplify rounding.
    """
    sine_squared = 1.0 - cos * cos
    return sine_squared <= (1e-16 if cos > 0 else BLUR**2)


def walk(gram: Gram, start: Sequence[float], tangent: Sequence[float]) -> list[float]:
    """From the unit vector `start` along the great circle, as far as `tangent` is long."""
    distance = length(gram, tangent)
    ratio = math.sin(distance) / distance if distance > 0 else 1.0
    return [math.cos(distance) * p + ratio * t for p, t in zip(start, tangent, strict=True)]


def arc(cos: float, t: float) -> tuple[float, float]:
    """Coefficients of spherical interpolation at `t`; the angle must not be `straight`."""
    angle = math.acos(cos)
    sine = math.sin(angle)
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine
