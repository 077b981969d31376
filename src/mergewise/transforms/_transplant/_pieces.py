"""New rows from the pieces that a model's own tokenizer cuts a token into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.transforms._transplant._combine import Combination

if TYPE_CHECKING:
    from torch import Tensor


def from_pieces(pieces: Sequence[Sequence[int]], how: str, output: bool) -> Combination:
    """Combine the rows of pieces.

    Args:
        pieces: rows of the model for each new token; none is empty.
        how: ``mean``, ``sum``, ``weighted_mean`` (the last piece counts most in an embedding, the
            first in a head, linearly), or ``first_last`` (that piece alone).
        output: for a head: its token must be told from where it begins.
    """
    longest = max(map(len, pieces), default=1)
    rows = torch.zeros(len(pieces), longest, dtype=torch.long)
    weights = torch.zeros(len(pieces), longest)
    for number, own in enumerate(pieces):
        rows[number, : len(own)] = torch.tensor(list(own))
        weights[number, : len(own)] = _weights(len(own), how, output)
    return Combination(rows, weights)


def _weights(count: int, how: str, output: bool) -> Tensor:
    if how == "sum":
        return torch.ones(count)
    if how == "mean":
        return torch.full((count,), 1 / count)
    found = torch.arange(1.0, count + 1) if how == "weighted_mean" else torch.zeros(count)
    if how == "first_last":
        found[-1] = 1
    return (found.flip(0) if output else found) / found.sum()
