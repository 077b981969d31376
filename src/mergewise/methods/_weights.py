"""Weighted sums, and what to do when weights cancel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.errors import MergewiseError
from mergewise.methods._params import Param

if TYPE_CHECKING:
    from torch import Tensor

_CANCELLED = 1e-9
WEIGHT = Param(float, 1.0, "factor on this model's task vector", per_model=True, native=True)


def cancel(weights: Sequence[float]) -> bool:
    """Whether the weights sum to zero, up to rounding (``0.1 + 0.2 - 0.3`` does)."""
    return abs(sum(weights)) <= _CANCELLED * sum(abs(w) for w in weights)


def no_share(weights: Sequence[float], switch: str = "normalize") -> str:
    """The message for weights that cannot be divided by their sum."""
    listed = ", ".join(f"{w:g}" for w in weights)
    return (
        f"the weights ({listed}) sum to 0, and {switch}: true divides by that sum; "
        f"change a weight or set {switch}: false"
    )


def shares(weights: Sequence[float], switch: str = "normalize") -> list[float]:
    """The weights divided by their sum.

    Raises:
        MergewiseError: if that sum is zero.
    """
    if cancel(weights):
        raise MergewiseError(no_share(weights, switch))
    whole = sum(weights)
    return [w / whole for w in weights]


def total(vectors: Iterable[Tensor]) -> Tensor:
    """The sum, added in order; of a generator no more than two are held at once."""
    each = iter(vectors)
    out = next(each)
    for vector in each:
        out = out + vector
        del vector  # or it is held while the next is made
    return out


def combination(vectors: Iterable[Tensor], weights: Sequence[Any]) -> Tensor:
    """``sum_i weights[i] * vectors[i]``, added in order."""
    return total(vector * weight for vector, weight in zip(vectors, weights, strict=True))
