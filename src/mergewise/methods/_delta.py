"""The task-arithmetic family: one pipeline over task vectors, of which methods are settings.

    score → sparsify → rescale → weight → consensus → combine → scale

With `factors`, a task vector's weight is multiplied by numbers of the model's evidence (statistic
`factor`): one for each row or column of a tensor, or each element, such as one for each attention
head.

A method names its selection rule (`_select`), whether a sign consensus is taken, and the
defaults of `normalize` and `rescale`; the rest is here.

Without a consensus, `normalize` divides by the sum of the weights, or by 1 where they cancel (a
sum below 1e-8): that is what mergekit does, and recipes that add one model and subtract another
rely on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._select import Everything
from mergewise.methods._weights import combination, total

if TYPE_CHECKING:
    from torch import Tensor

SIGN = Param(
    str,
    "sum",
    "which sign wins: that of the larger sum, or that of more models",
    choices=("sum", "count"),
    native=True,
)
_CANCELLED = 1e-8
FACTORS = Param(
    bool,
    False,
    "multiply weights by the factors in each model's evidence, such as one for each head",
    native=True,
)
_FACTOR = Need(
    "factor", "factor", "examples", "spread", asked_by="factors: true", otherwise="its weight alone"
)
INT8_MASK = Param(bool, False, "accepted for mergekit recipes; has no effect on the result")


def delta_params(normalize: bool, rescale: bool, **extra: Param) -> dict[str, Param]:
    """The parameters of a member of the family, with its own defaults and additions."""
    return {
        "weight": Param(float, REQUIRED, "factor on this model's task vector", per_model=True),
        "density": Param(
            float, 1.0, "share of the task vector's elements to keep", per_model=True, ge=0, le=1
        ),
        **extra,
        "normalize": Param(
            bool,
            normalize,
            "divide by the sum of the weights (of those that take part), unless it is 0",
        ),
        "rescale": Param(bool, rescale, "make up for the elements dropped"),
        "lambda": Param(float, 1.0, "factor on the merged task vector"),
        "factors": FACTORS,
        "int8_mask": INT8_MASK,
    }


def shared_out(factors: Sequence[float], p: Settings) -> list[float]:
    """Factors over the sum of the weights, if `normalize` asks for it and they do not cancel."""
    whole = sum(p.weight)
    divided = p.normalize and abs(whole) >= _CANCELLED
    return [factor / whole for factor in factors] if divided else list(factors)


def elect(
    parts: Sequence[Tensor], votes: Sequence[Tensor], weights: Sequence[Any], normalize: bool
) -> Tensor:
    """Sum the parts that have the sign of the summed votes, element by element.

    That sign is + where the votes sum to zero; parts that are zero never take part. `normalize`
    divides by the weights of the parts that did.
    """
    positive = total(votes) >= 0
    agreeing = [torch.clamp(torch.where(positive, part, -part), min=0.0) for part in parts]
    merged = total(agreeing)
    if normalize:
        share = combination([(part > 0) * 1.0 for part in agreeing], weights)
        merged = merged / torch.where(share == 0, torch.ones_like(share), share)
    return torch.where(positive, merged, -merged)


def factored(x: Inputs, s: Settings, parts: list[Tensor]) -> list[Tensor]:
    """Each expert's part multiplied by the factors of its evidence, if the settings say so."""
    if not (s.factors and x.evidence):
        return parts
    return [part * own for part, own in zip(parts, x.evidence[0], strict=True)]


class DeltaMethod(Method):
    """Base of the family; see the module."""

    family = "task vectors"
    selection: ClassVar[Everything] = Everything()
    consensus: ClassVar[bool] = False

    def problem(self, p: Settings, experts: int) -> str | None:
        if p.factors and self.selection.needs(p):
            return (
                f"`factors` and `score: {p.score}` would both read evidence of every model, which "
                "is not built yet; leave one out"
            )
        return self.selection.problem(p)

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return (_FACTOR,) if p.factors else self.selection.needs(p)

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return self.selection.scores(x, s)

    def scale(self, p: Settings, described: bool) -> str:
        return self.selection.scale(p, described)

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return self.selection.ranks(p, n)

    def ranked(self, p: Settings) -> bool:
        return self.selection.ranked(p)

    def masks(self, x: Inputs, s: Settings) -> list[Tensor]:
        if not self.selection.masks_suffice(s):
            return []
        return [self.selection.mask(x, s, i, delta) for i, delta in enumerate(x.deltas)]

    def _matches_norm(self, s: Settings) -> bool:
        return s.rescale and getattr(s, "rescale_by", "l1") == "l1"

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        if not self._matches_norm(s):
            return {}
        terms = {}
        for i, delta in enumerate(x.deltas):
            terms[f"all_{i}"] = delta.abs()
            terms[f"kept_{i}"] = self.selection.kept(x, s, i, delta).abs()
        return terms

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        factors = list(p.weight)
        if self._matches_norm(p):
            for i, weight in enumerate(p.weight):
                kept = totals[f"kept_{i}"]
                factors[i] = weight * totals[f"all_{i}"] / kept if kept > 0 else weight
        return {"factor": factors if self.consensus else shared_out(factors, p)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        kept = [self.selection.kept(x, s, i, delta) for i, delta in enumerate(x.deltas)]
        kept = factored(x, s, kept)
        if not self.consensus:
            return x.base + combination(kept, s.factor) * s.lambda_
        parts = [delta * factor for delta, factor in zip(kept, s.factor, strict=True)]
        votes = [torch.sign(part) for part in parts] if s.sign == "count" else parts
        merged = elect(parts, votes, s.weight, s.normalize)
        return x.base + merged * s.lambda_
