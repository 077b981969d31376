"""MaTS: the models' average under metrics of their tasks, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._quadratic import (
    equations,
    mean_of,
    shrunk,
    solve_conjugate,
    solve_diagonal,
)
from mergewise.methods._weights import combination, shares

if TYPE_CHECKING:
    from torch import Tensor

_MEAN = "the weighted mean"
_INPUTS = Need("input_gram", "gram", "tokens", "matrix", otherwise=_MEAN)
_OUTPUTS = replace(_INPUTS, statistic="output_gradient_gram", per="output_matrix")
_NEEDS: Mapping[str, tuple[Need, ...]] = {
    "identity": (),
    "diagonal": (Need("fisher", "squares", "examples", "element", otherwise=_MEAN),),
    "gram": (_INPUTS,),
    "kfac": (_INPUTS, _OUTPUTS),
}


class Mats(Method):
    """Solves ``(sum_i w_i C_i) W = sum_i w_i C_i W_i`` without inverting anything.

    The metric C of a model is 1 (`identity`), its diagonal Fisher information (`diagonal`), the
    Gram matrix of the weight's inputs (`gram`: RegMean's equations), or that and the Gram matrix
    of its outputs' gradients (`kfac`: Kronecker-factored Fisher, W -> S W G). In directions in
    which no metric says anything, and where the search is cut short, the result stays near where
    it began (`init`). With `gram` each row of a weight is a system of its own; `regmean` solves
    the same equations directly, and sooner. `identity` and `diagonal` need no search. Tensors
    that some model's evidence does not describe get the weighted mean.
    """

    name = "mats"
    summary = (
        "average in the experts' task subspaces (K-FAC, Gram or diagonal metric), solved by CG"
    )
    advice = (
        "As regmean, with a richer metric (both sides of a layer) when gradients can be "
        "collected. It solves by iteration, and a poor start shows if these are few."
    )
    base = "optional"
    formula = "solve (sum_i w_i C_i) W = sum_i w_i C_i W_i by conjugate gradients from `init`"
    source = "MaTS (Tam, Bansal & Raffel 2024, arXiv 2312.04339)"
    variant = "paper; each weight by itself, rows apart where the metric allows it"
    solving = 14  # measured; nine are in use at once
    params = {
        "weight": Param(float, 1.0, "share of this model", per_model=True, ge=0, native=True),
        "metric": Param(
            str,
            "kfac",
            "what distances are measured with",
            choices=("identity", "diagonal", "gram", "kfac"),
            native=True,
        ),
        "off_diagonal": Param(
            float, 0.9, "factor on the Gram matrices' off-diagonal elements", ge=0, le=1,
            native=True,
        ),
        "iterations": Param(int, 100, "steps of the search, at most", ge=1, native=True),
        "tolerance": Param(
            float, 1e-5, "end where the residual is this share of what it was", ge=0, native=True
        ),
        "init": Param(
            str,
            None,
            "where to begin: the base plus `init_scale` of the task vectors (the default with a "
            "base), or the mean (without one)",
            choices=("task_arithmetic", "mean"),
            native=True,
        ),
        "init_scale": Param(float, 0.3, "factor on the task vectors to begin with", native=True),
    }  # fmt: skip
    example = """
merge_method: mats
base_model: base
models:
  - model: expert_a
    evidence: [expert_a.gram.safetensors, expert_a.gradients.safetensors]
  - model: expert_b
    evidence: [expert_b.gram.safetensors, expert_b.gradients.safetensors]
parameters: {metric: kfac}
"""

    def normalized(self, p: Settings) -> str:
        return self.name

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return _NEEDS[p.metric]

    def problem(self, p: Settings, experts: int) -> str | None:
        return None if sum(p.weight) > 0 else "the weights are all 0"

    def baseless(self, p: Settings) -> str | None:
        asked = p.init == "task_arithmetic" and p.metric in ("gram", "kfac")
        return "init: task_arithmetic begins at the base" if asked else None

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"share": shares(p.weight)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        if s.metric == "identity" or not x.evidence:
            return combination(x.experts, s.share)
        if s.metric == "diagonal":
            return solve_diagonal(x.experts, x.evidence[0], s.weight, s.share)
        start = _start(x, s)
        solve = _by_rows if s.metric == "gram" else _kronecker
        return (start + solve(x, s, start)).to(x.experts[0].dtype)


def _start(x: Inputs, s: Settings) -> Tensor:
    if x.base is None or s.init == "mean":
        return mean_of(x.experts, s.share)
    start = x.base.to(torch.float64, copy=True)
    for delta in x.deltas:
        start.add_(delta, alpha=s.init_scale)
    return start


def _by_rows(x: Inputs, s: Settings, start: Tensor) -> Tensor:
    whole, pull = equations(x.experts, x.evidence[0], s.weight, start, s.off_diagonal)
    return solve_conjugate(lambda v: v @ whole, pull, s.iterations, s.tolerance)


def _kronecker(x: Inputs, s: Settings, start: Tensor) -> Tensor:
    """The step from `start` under ``W -> sum_i w_i S_i W G_i``; S [out, out], G [in, in]."""
    entering, leaving = ([_widened(gram, s) for gram in grams] for grams in x.evidence)
    for outer, weight in zip(leaving, s.weight, strict=True):
        outer.mul_(weight)
    factors = list(zip(leaving, entering, strict=True))

    def applied(blocks: Iterable[Tensor]) -> Tensor:
        out = torch.zeros_like(start)
        for (outer, inner), block in zip(factors, blocks, strict=True):
            out.addmm_(outer @ block, inner)
        return out

    pull = applied(model - start for model in x.experts)
    return solve_conjugate(
        lambda v: applied([v] * len(factors)), pull, s.iterations, s.tolerance, dims=(0, 1)
    )


def _widened(gram: Tensor, s: Settings) -> Tensor:
    return shrunk(gram, slice(0, len(gram)), s.off_diagonal)
