"""The quadratic solver: the point nearest to all models, each with a metric of its own.

    minimise over W:  sum_i w_i || C_i^(1/2) (W - W_i) ||^2
    hence             (sum_i w_i C_i) W = sum_i w_i C_i W_i

With C the identity this is the weighted mean, with a diagonal (Fisher) an elementwise one, with a
Gram matrix of inputs RegMean, with one of inputs and one of outputs' gradients K-FAC. Where the
metrics say nothing, as in directions that no calibration input had, the answer is the weighted
mean, or wherever the search began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import MergewiseError
from mergewise.methods._weights import combination, total

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 1024
"""Of a Gram matrix that are widened to float64 at a time."""


def solve_diagonal(
    models: Sequence[Tensor],
    metrics: Sequence[Tensor],
    weights: Sequence[Any],
    shares: Sequence[Any],
) -> Tensor:
    """Elementwise ``sum_i w_i C_i W_i / sum_i w_i C_i``; can be compiled.

    Args:
        models: of any one shape.
        metrics: non-negative, of that shape.
        weights: factors on the metrics.
        shares: what the mean is made of where all metrics are zero; they sum to one.
    """
    scaled = [metric * weight for metric, weight in zip(metrics, weights, strict=True)]
    whole = total(scaled)
    known = whole > 0
    safe = torch.where(known, whole, torch.ones_like(whole))
    # shares first: products with information near float32's least would round to nothing
    parts = total([model * (c / safe) for model, c in zip(models, scaled, strict=True)])
    return torch.where(known, parts, combination(models, shares))


def solve_gram(
    models: Sequence[Tensor],
    grams: Sequence[Tensor],
    weights: Sequence[float],
    shares: Sequence[float],
    ridge: float,
    off_diagonal: float = 1.0,
) -> Tensor:
    """``(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1``, solved in float64 around the mean.

    Beside what it is given it holds two [in, in] and three [out, in] in float64.

    Args:
        models: [out, in].
        grams: symmetric, positive semidefinite [in, in].
        ridge: added to the diagonal, as a share of its mean.
        off_diagonal: factor on the elements off the diagonals.

    Returns:
        [out, in], in the type of the models.

    Raises:
        MergewiseError: if the sum of the metrics is not positive definite.
    """
    mean = mean_of(models, shares)
    whole, pull = equations(models, grams, weights, mean, off_diagonal)
    diagonal = whole.diagonal()
    level = float(diagonal.mean())
    if not level > 0:
        return mean.to(models[0].dtype)
    diagonal += ridge * level
    factor, failed = torch.linalg.cholesky_ex(whole)
    if int(failed):
        raise MergewiseError(
            "the Gram matrices of the inputs are not positive definite; raise `ridge` "
            f"(now {ridge:g}), or calibrate on more data"
        )
    del whole, diagonal
    moved = torch.linalg.solve_triangular(factor.T, pull, upper=True, left=False)
    moved = torch.linalg.solve_triangular(factor, moved, upper=False, left=False)
    return moved.add_(mean).to(models[0].dtype)


def mean_of(models: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean in float64."""
    mean = torch.zeros_like(models[0], dtype=torch.float64)
    for model, share in zip(models, shares, strict=True):
        mean.add_(model, alpha=share)
    return mean


def solve_conjugate(
    operator: Callable[[Tensor], Tensor],
    pull: Tensor,
    iterations: int,
    tolerance: float,
    dims: int | tuple[int, ...] = -1,
) -> Tensor:
    """``operator^-1 pull`` by conjugate gradients (Hestenes & Stiefel 1952), without an inverse.

    Directions that the operator annihilates stay at zero.

    Args:
        operator: linear, symmetric and positive semidefinite on tensors of `pull`'s shape.
        pull: the right-hand side, float64.
        iterations: at most so many steps.
        tolerance: stop where the residual's norm is below this share of `pull`'s.
        dims: what makes one system of equations; by default each row is one of its own, which
            makes the result independent of what other rows there are.
    """
    found, residual, direction = torch.zeros_like(pull), pull.clone(), pull.clone()
    size = (residual * residual).sum(dims, keepdim=True)
    enough = size * tolerance**2
    for _ in range(iterations):
        going = size > enough
        if not going.any():
            break
        moved = operator(direction)
        curvature = (direction * moved).sum(dims, keepdim=True)
        step = _ratio(size, curvature, going & (curvature > 0))
        found.addcmul_(step, direction)
        residual.addcmul_(step, moved, value=-1)
        before, size = size, (residual * residual).sum(dims, keepdim=True)
        direction.mul_(_ratio(size, before, going)).add_(residual)
    return found


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, a / torch.where(where, b, torch.ones_like(b)), torch.zeros_like(a))


def equations(
    models: Sequence[Tensor],
    grams: Sequence[Tensor],
    weights: Sequence[float],
    around: Tensor,
    off_diagonal: float,
) -> tuple[Tensor, Tensor]:
    """The two sides for ``W - around``: the metrics' sum [in, in], and the pull [out, in]."""
    whole = torch.zeros_like(grams[0], dtype=torch.float64)
    pull = torch.zeros_like(around)
    for model, gram, weight in zip(models, grams, weights, strict=True):
        apart = model.to(torch.float64, copy=True).sub_(around)
        for first in range(0, len(gram), _ROWS):
            rows = slice(first, first + _ROWS)
            metric = shrunk(gram, rows, off_diagonal).mul_(weight)
            whole[rows] += metric
            pull.addmm_(apart[:, rows], metric)
    return whole, pull


def shrunk(gram: Tensor, rows: slice, off_diagonal: float) -> Tensor:
    """Rows of a Gram matrix in float64, shrunk off its diagonal."""
    found = gram[rows].to(torch.float64, copy=True)
    own = found.diagonal(rows.start)
    kept = own.clone()
    found *= off_diagonal
    own.copy_(kept)
    return found
