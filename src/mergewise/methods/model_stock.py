"""Model Stock: average the experts, and go back towards the base as far as they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs, Method
from mergewise.methods._gram import cosine, gram_matrix, gram_terms
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

_POLE = 1e-6
"""Of the denominator: below it the ratio is meaningless, and the base is kept."""


def _row_cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)
    dot = (a * b).sum(dim=-1, keepdim=True)
    safe = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    return torch.where(lengths > 0, dot / safe, torch.zeros_like(dot)).clamp(-1.0, 1.0)


def _row_ratio(deltas: list[Tensor]) -> Tensor:
    count = len(deltas)
    pairs = [_row_cosine(deltas[i], deltas[j]) for i in range(count) for j in range(i)]
    cos = torch.stack(pairs).mean(dim=0)
    below = 1.0 + (count - 1) * cos
    pole = below.abs() < _POLE
    ratio = count * cos / torch.where(pole, torch.ones_like(below), below)
    return torch.where(pole, torch.zeros_like(ratio), ratio)


class ModelStock(Method):
    """The point nearest the experts' centre, judged by the mean angle between task vectors.

    A task vector that is zero has no angle; its cosines count as 0. Where the ratio has its pole
    (all experts cancel) the base is kept.
    """

    name = "model_stock"
    summary = "the experts' mean, drawn back to the base by how much they disagree"
    advice = (
        "For a few fine-tunings of one base on the same data, to do without a larger soup. Of "
        "experts for different tasks, whose task vectors are nearly orthogonal, it stays "
        "close to the base."
    )
    family = "averages"
    experts = (2, None)
    formula = "t mean(x) + (1 - t) b, t = N c / (1 + (N-1) c), c = mean pairwise cosine of d"
    source = "Model Stock (Jang, Yun and Han 2024, arXiv 2403.19522)"
    params = {
        "filter_wise": Param(bool, False, "one angle for each row instead of each tensor"),
    }
    example = """
merge_method: model_stock
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def access(self, p: Settings) -> Access:
        return Access.ROWS if p.filter_wise else Access.FLAT

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return {} if s.filter_wise else gram_terms(x.deltas)

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        if p.filter_wise:
            return {}
        gram = gram_matrix(totals)
        count = len(gram)
        pairs = [cosine(gram, i, j) for i in range(count) for j in range(i)]
        cos = sum(pairs) / len(pairs)
        below = 1.0 + (count - 1) * cos
        return {"ratio": count * cos / below if abs(below) >= _POLE else 0.0}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        deltas = x.deltas
        ratio = _row_ratio(deltas) if s.filter_wise else s.ratio
        return x.base + total(deltas) / len(deltas) * ratio
