"""OPCM: models merged one after the other, each next to what is there already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs
from mergewise.methods._matrix import MatrixMethod, inside, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import svd
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

_EXACT = 1e-12


class Opcm(MatrixMethod):
    """Of each next task vector, what repeats the running sum's strongest directions is left out.

    In the singular vectors of the sum so far, a next task vector loses its diagonal and its block
    of the first r. The sum is at last divided by one number for the whole model, so that it is as
    long as the task vectors are on average. Because the singular vectors of a sum do not depend
    on its length, dividing once is the same as the paper's dividing after each model.

    To add a model to a merge later, give the merge as the first model with `merged`, how many it
    holds, and `divisor`. Both are in its ``mergewise_provenance.json`` under ``settings``,
    ``whole_model``. With them the result is that of all models at once, but for the rounding of
    the file between; without a divisor the square root of `merged` stands in.

    Each matrix is decomposed twice, for the norm of the whole model comes first.
    """

    name = "opcm"
    summary = "one model after the other, each without what repeats the merge so far"
    advice = (
        "For models that arrive one by one: each is added to the merge so far, in memory that "
        "does not grow. The order matters, and the first models are not seen again."
    )
    experts = (1, None)
    symmetric = False
    formula = (
        "N_1 = w_1 d_1; N_t = N_{t-1} + U P V^T, P = U^T w_t d_t V with diagonal and P[:r, :r] "
        "zeroed, N_{t-1} = U S V^T; b + lambda N_T mean_t |w_t d_t| / |N_T|, whole-model norms"
    )
    source = "OPCM (Tang et al. 2025, arXiv 2501.09522)"
    variant = (
        "authors' code, which leaves the singular value that crosses alpha out of the block "
        "(FusionBench's page has it in: crossing: include); in the recipe's order, where theirs "
        "shuffles; directions in which the sum is zero protect nothing"
    )
    params = matrix_params("linear", "sum") | {
        "otherwise": Param(
            str, "running", "the merged task vector of all other tensors: their share of the "
            "running sum, unprojected; or, outside of it, the experts' mean, their sum, or nothing",
            choices=("running", "mean", "sum", "base"), native=True,
        ),
        "alpha": Param(
            float, 0.5, "share of the singular values' sum that the block holds", ge=0, le=1,
            native=True,
        ),
        "crossing": Param(
            str, "exclude", "the singular value at which that share is passed",
            choices=("exclude", "include"), native=True,
        ),
        "norm": Param(
            str, "model", "what is as long as the task vectors on average: the whole model, or "
            "each tensor", choices=("model", "tensor"), native=True,
        ),
        "merged": Param(
            int, 1, "how many models the first one holds, if it is a merge of this kind", ge=1,
            native=True,
        ),
        "divisor": Param(
            float, None, "what that merge was divided by; by default the square root of `merged`",
            gt=0, native=True,
        ),
    }  # fmt: skip
    example = """
merge_method: opcm
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def pooled(self, p: Settings) -> bool:
        return bool(p.norm == "model")

    def elsewhere(self, p: Settings) -> str:
        if not inside(p) and p.otherwise == "running":
            return f"{p.kind}, not among `tensors: {p.tensors}`: the running sum without projection"
        return super().elsewhere(p)

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        if not _running(s):
            return {}
        parts = _weighted(x, s)
        merged = self._sum(x, parts, s)
        return {"merged": merged * merged, **{f"{i}": p * p for i, p in enumerate(parts)}}

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"shrink": 1.0 / self.recorded(totals, p)["divisor"]}

    def recorded(self, totals: Mapping[str, float], p: Settings) -> dict[str, float]:
        sizes = [math.sqrt(totals.get(f"{i}", 0.0)) for i in range(len(p.weight))]
        # the first was multiplied by its divisor
        whole = p.merged * sizes[0] / _divisor(p) + sum(sizes[1:])
        mean = whole / (p.merged + len(sizes) - 1)
        length = math.sqrt(totals.get("merged", 0.0))
        return {
            "merged": p.merged + len(sizes) - 1,
            "divisor": length / mean if mean and length else 1.0,
            "norm": mean,
        }

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if not _running(s):
            return super().combine(x, s)
        assert x.base is not None
        return x.base + self._sum(x, _weighted(x, s), s) * self.factor(s)

    def factor(self, s: Settings) -> Any:
        return s.shrink * s.lambda_ if _running(s) else s.lambda_

    def _sum(self, x: Inputs, parts: Sequence[Tensor], s: Settings) -> Tensor:
        assert x.base is not None
        return self._updated(x.base, parts, s) if inside(s) else total(parts)

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size = outputs * inputs
        squares = (experts / 2 + 1.0) * size
        return (
            max(squares, 4.0 * size + 2.0 * min(outputs, inputs) ** 2) if experts > 1 else squares
        )

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        running = deltas[0].double()
        for delta in deltas[1:]:
            running = running + _without(delta.to(running, copy=True), running, s)
        return running


def _running(s: Settings) -> bool:
    return inside(s) or bool(s.otherwise == "running")


def _divisor(p: Settings) -> float:
    """Of the first model."""
    return float(math.sqrt(p.merged) if p.divisor is None else p.divisor)


def _weighted(x: Inputs, s: Settings) -> list[Tensor]:
    """Task vectors; that of a merge as long as it was before it was divided."""
    parts = x.weighted(s.weight)
    return parts if s.merged == 1 and s.divisor is None else [parts[0] * _divisor(s), *parts[1:]]


def _without(delta: Tensor, running: Tensor, s: Settings) -> Tensor:
    """A task vector without what repeats the running sum: see `Opcm`. Changes `delta`."""
    found = svd(running, least=s.rounding * _divisor(s))
    if not len(found.s):
        return delta
    share = found.s.cumsum(0) / found.s.sum()
    block = int((share <= s.alpha + _EXACT).sum()) + (s.crossing == "include")
    turned = found.u.mT @ delta
    inner = turned[:block] @ found.vh[:block].mT
    diagonal = torch.einsum("ij,ij->i", turned, found.vh)
    repeated = torch.mul(found.vh, diagonal[:, None], out=turned)
    repeated[:block].addmm_(inner.fill_diagonal_(0.0), found.vh[:block])
    return delta.addmm_(found.u, repeated, alpha=-1)
