"""WIDEN: columns ranked by how far their size and their direction moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs
from mergewise.methods._matrix import MatrixMethod, inside, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor

_SCORED = "score"


class Widen(MatrixMethod):
    """Each expert's columns are added by how far their size and direction moved, of its columns.

    Made for experts whose changes differ in scale, such as one trained further on much text and
    one tuned on instructions: only ranks within an expert count. Columns above the expert's mean
    rank are added whole, so that the weights of a column may sum to as many as the experts are;
    `lambda` shortens the sum. A column that is zero has no direction: two zero columns are taken
    as alike, and a zero and another as at right angles.
    """

    name = "widen"
    summary = "adds columns of task vectors by how far their size and direction moved"
    advice = (
        "To merge a model that was trained long with one that was fine-tuned shortly, columns "
        "being weighed by how far they moved. Task vectors are added up, and one that did nothing "
        "still has its share: with the lab's five to eight experts lambda 0.3 to 0.7 was best, "
        "and 1 could be worse than the base."
    )
    family = "task vectors"
    formula = (
        "w_i = (s(rank |m_i - m_b|) + s(rank (1 - cos(W_i, W_b)))) / 2 for every column, m = norm; "
        "s = softmax over experts, or `calibration` where a rank exceeds ratio times the expert's "
        "mean; b + lambda sum_i w_i d_i"
    )
    source = "WIDEN (Yu et al. 2024, arXiv 2408.03092)"
    variant = (
        "official code, except that columns that moved equally have equal ranks (code: by their "
        "index, `equal: index`), and that heads are looked at token by token as embeddings are "
        "(code: heads by hidden unit, `embeddings: hidden`)"
    )
    params = matrix_params("all", "mean") | {
        "ratio": Param(
            float, 1.0, "ranks above this many times the mean rank count as important", ge=0,
            native=True,
        ),
        "calibration": Param(
            float, 1.0, "weight of the important, in place of their softmax", native=True
        ),
        "equal": Param(
            str, "least", "rank of columns that moved equally: the least of them for all, or by "
            "their index (code)", choices=("least", "index"), native=True,
        ),
        "embeddings": Param(
            str, "tokens", "what a column of an embedding or head is", native=True,
            choices=("tokens", "hidden"),
        ),
        "otherwise": Param(
            str, _SCORED, "the merged task vector of all other tensors: every element weighed by "
            "its change as columns are by their ranks (code), the experts' mean, their sum, or "
            "nothing", choices=(_SCORED, "mean", "sum", "base"), native=True,
        ),
    }  # fmt: skip
    example = """
merge_method: widen
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def access(self, p: Settings) -> Access:
        return Access.WHOLE if p.otherwise == _SCORED else super().access(p)

    def elsewhere(self, p: Settings) -> str:
        if inside(p) or p.otherwise != _SCORED:
            return super().elsewhere(p)
        return f"{p.kind}, not among `tensors: {p.tensors}`: each element by its own change"

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        parts = x.weighted(s.weight)
        if inside(s):
            return x.base + self._updated(x.base, [x.base, *parts], s) * s.lambda_
        if s.otherwise != _SCORED:
            return super().combine(x, s)
        return x.base + _by_element(parts, s) * s.lambda_

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size = outputs * inputs
        return 5.5 * size

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        if s.kind == "embedding" and s.embeddings == "tokens":
            return _by_column([part.mT for part in deltas], s).mT
        return _by_column(deltas, s)


def _by_column(matrices: Sequence[Tensor], s: Settings) -> Tensor:
    """The merged task vector, in float64, of the base and task vectors."""
    base, parts = matrices[0].double(), matrices[1:]
    moved = [_moved(base, base + part) for part in parts]
    del base
    sizes, directions = (
        _scores(torch.stack([_ranks(each[k], s.equal) for each in moved]), s) for k in (0, 1)
    )
    return combination((part.double() for part in parts), list((sizes + directions) / 2))


def _moved(base: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """How far every column's norm and direction moved: the difference, and 1 - cos."""
    before, after = base.norm(dim=0), other.norm(dim=0)
    turn = _directions(other, after) - _directions(base, before)
    # half the squared distance is 1 - cos, and exactly 0 for a column that stayed
    angle = turn.square().sum(dim=0) / 2
    return (after - before).abs(), torch.where((before > 0) == (after > 0), angle, 1.0)


def _directions(matrix: Tensor, norms: Tensor) -> Tensor:
    return matrix / torch.where(norms > 0, norms, 1.0)


def _ranks(values: Tensor, equal: str) -> Tensor:
    """Ascending ranks over their number, from 0 to less than 1."""
    n = max(1, len(values))
    ordered, order = values.sort(stable=True)
    if equal == "least":
        return torch.searchsorted(ordered, values).double() / n
    ranks = torch.empty_like(values)
    ranks[order] = torch.arange(len(values), dtype=values.dtype, device=values.device) / n
    return ranks


def _scores(significance: Tensor, s: Settings) -> Tensor:
    """Weights [experts, places] of significances of that shape."""
    important = significance > significance.mean(dim=1, keepdim=True) * s.ratio
    return torch.where(important, s.calibration, torch.softmax(significance, dim=0))


def _by_element(parts: Sequence[Tensor], s: Settings) -> Tensor:
    if not parts[0].numel():
        return parts[0]
    changes = torch.stack([part.reshape(-1) for part in parts]).double()
    merged = (changes * _scores(changes.abs(), s)).sum(dim=0)
    return merged.to(parts[0].dtype).reshape(parts[0].shape)
