"""Elementwise methods whose papers leave some tensors out: the policy of `_matrix`, by element.

`tensors` says which kinds the method is for, `otherwise` what all others get. Thresholds over the
whole model, sums and shares are over the tensors inside alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs
from mergewise.methods._matrix import KINDS, PlacedMethod, otherwise_param, rest, told
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

_KINDS: Mapping[str, frozenset[str]] = {
    **{name: KINDS[name] for name in ("none", "linear", "matrices")},
    "layers": KINDS["matrices"] | {"vector"},
    "all": KINDS["all"] | {"vector"},
}


def element_params(tensors: str, otherwise: str = "base") -> dict[str, Param]:
    """The policy's parameters, with a paper's as their defaults."""
    return {
        "tensors": Param(
            str, tensors, "what it is for: weights of linear layers, convolutions too, all but "
            "embeddings and heads (their norms and biases too), or all; none, with a filter, "
            "leaves tensors to `otherwise`",
            choices=tuple(_KINDS), native=True,
        ),
        "otherwise": otherwise_param(otherwise),
    }  # fmt: skip


class ElementMethod(PlacedMethod):
    """Stands before a method's other bases, and lets them see only the tensors it is for."""

    def inside(self, p: Settings) -> bool:
        """Whether a tensor is among those; also where no tensor is spoken of yet."""
        if getattr(p, "kind", None) is None:
            return True
        return p.kind in _KINDS[p.tensors] and not (p.tensors == "layers" and p.end)

    def elsewhere(self, p: Settings) -> str:
        return "" if self.inside(p) else told(p)

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return super().scores(x, s) if self.inside(s) else []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return super().ranks(p, n, nonzero) if self.inside(p) else []

    def ranked(self, p: Settings) -> bool:
        return self.inside(p) and super().ranked(p)

    def masks(self, x: Inputs, s: Settings) -> list[Tensor]:
        return super().masks(x, s) if self.inside(s) else []

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        return super().terms(x, s) if self.inside(s) else {}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return super().coefficients(totals, p, n) if self.inside(p) else {}

    def left(self, x: Inputs, s: Settings) -> Tensor:
        """The merged block of a tensor that is not among those."""
        assert x.base is not None
        if s.otherwise == "base":
            return x.base * 1.0
        weights = getattr(s, "weight", None)
        parts = x.deltas if weights is None else x.weighted(weights)
        return x.base + rest(parts, s.otherwise) * getattr(s, "lambda_", 1.0)
