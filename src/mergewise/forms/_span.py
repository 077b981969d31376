"""Adapters' matrices merged within what they span together, by methods that turn with it.

The columns of all ``B_i`` span few directions, and so do the rows of all ``A_i``. In orthonormal
bases of these the matrices are as small as the sum of the ranks (Core Space, arXiv 2509.17786),
and what `Method.turns` allows is merged there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.forms._adapter_files import Factors

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]
"""B ``[outputs, rank]`` and A ``[rank, inputs]``."""


def flat_factors(each: Sequence[Factors | None]) -> list[Pair]:
    """Factors as matrices; of rank 0 where an adapter has none."""
    like = next(f for f in each if f)
    none = like.b.flatten(1)[:, :0], like.a.flatten(1)[:0]
    return [(f.b.flatten(1), f.a.flatten(1)) if f else none for f in each]


def merged_in_span(
    factors: Sequence[Pair], turns: tuple[bool, bool], merge: Callable[[list[Tensor]], Tensor]
) -> Pair:
    """Factors of what `merge` makes of the products.

    Args:
        turns: what may be turned, outputs or inputs; not neither.
        merge: makes one matrix of several.
    """
    b = torch.cat([b for b, _ in factors], dim=1).double()
    a = torch.cat([a for _, a in factors]).double()
    left = torch.linalg.qr(b).Q if turns[0] else None
    right = torch.linalg.qr(a.mT).Q if turns[1] else None
    seen = [
        (b.double() if left is None else left.mT @ b.double())
        @ (a.double() if right is None else a.double() @ right)
        for b, a in factors
    ]
    kind = factors[0][0].dtype
    merged = merge([matrix.to(kind) for matrix in seen])
    if left is not None:
        return left.to(kind), merged if right is None else merged @ right.mT.to(kind)
    assert right is not None
    return merged, right.mT.to(kind)
