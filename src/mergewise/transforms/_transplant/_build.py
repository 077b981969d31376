"""The new tensors: known rows moved, others made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.transforms._transplant._combine import Combination
from mergewise.vocabulary import Match

if TYPE_CHECKING:
    from torch import Tensor

Draw = tuple[str, int]
"""A filling without the donor's help (``mean``, ``zero``, ``random``), and a seed."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What stands in the rows of a new tensor.

    Attributes:
        match: rows that are the model's own.
        made: output rows that are combined, in the order of `combination`.
        combination: of the model's rows.
        drawn: output rows that are filled by `draw`.
        padding: output rows without a token.
        kept: the model's row by output row, for rows without a token in both.
        real: the model's rows that have a token, ascending.
    """

    match: Match
    made: Sequence[int]
    combination: Combination | None
    drawn: Sequence[int]
    draw: Draw
    padding: Sequence[int]
    kept: dict[int, int]
    real: Sequence[int]


def is_identity(rows: Rows, stored: int) -> bool:
    """Whether every row stays where it is."""
    count = len(rows.match.rows)
    where = {row: rows.match.rows[row] for row in range(count)} | rows.kept
    return stored == count and all(where[row] == row for row in range(count))


def built(own: Tensor, rows: Rows, name: str) -> Tensor:
    """The new tensor as a matrix [rows of the output, width], in the type of the old one.

    Args:
        own: [rows of the model, width].
        name: of the tensor; random rows of two tensors are different.
    """
    out = own.new_zeros(len(rows.match.rows), own.shape[1])
    moved = {row: mine for row, mine in enumerate(rows.match.rows) if mine >= 0} | rows.kept
    out[torch.tensor(list(moved), dtype=torch.long)] = own[
        torch.tensor(list(moved.values()), dtype=torch.long)
    ]
    if rows.combination is not None:
        where = torch.tensor(list(rows.made))
        for start, values in rows.combination.apply(own):
            out[where[start : start + len(values)]] = values.to(own.dtype)
    fills = [row for row in rows.padding if row not in rows.kept]
    if not fills and not rows.drawn:
        return out
    mean, spread = _moments(own, rows.real)
    if fills:
        out[torch.tensor(fills)] = mean.to(own.dtype)
    if rows.drawn:
        values = _drawn(len(rows.drawn), mean, spread, rows.draw, name)
        out[torch.tensor(list(rows.drawn))] = values.to(own.dtype)
    return out


def _moments(own: Tensor, real: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by column of the rows that have a token, in float64."""
    where = torch.tensor(list(real), dtype=torch.long)
    parts = [where[start : start + 4096] for start in range(0, len(where), 4096)]
    total = torch.zeros(own.shape[1], dtype=torch.float64)
    squares = total.clone()
    for part in parts:
        total += own[part].double().sum(0)
    mean = total / max(1, len(where))
    for part in parts:
        squares += (own[part].double() - mean).square_().sum(0)
    return mean, (squares / max(1, len(where))).sqrt_()


def _drawn(count: int, mean: Tensor, spread: Tensor, draw: Draw, name: str) -> Tensor:
    how, seed = draw
    if how == "mean":
        return mean.expand(count, -1)
    if how == "zero":
        return torch.zeros(count, len(mean))
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    noise = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    return mean + noise * spread
