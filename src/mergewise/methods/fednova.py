"""FedNova: task vectors of runs of different length, each taken by the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import REQUIRED, Param, Settings
from mergewise.methods._weights import combination, shares

if TYPE_CHECKING:
    from torch import Tensor


def effective_steps(steps: float, momentum: float, proximal: float) -> float:
    """The summed weights with which a run's gradients are in its change (FedNova's ``|a|_1``).

    Args:
        steps: of local training.
        momentum: of SGD, m: ``sum_{k=1..steps} (1 - m^k) / (1 - m)``.
        proximal: learning rate times the proximal term's factor, c: ``(1 - (1 - c)^steps) / c``.
    """
    if momentum:
        return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    return (1 - (1 - proximal) ** steps) / proximal if proximal else float(steps)


def _factors(p: Settings) -> list[float]:
    lengths = [
        effective_steps(steps, momentum, proximal)
        for steps, momentum, proximal in zip(p.steps, p.momentum, p.proximal, strict=True)
    ]
    together = [
        steps if any(p.proximal) else size for steps, size in zip(p.steps, lengths, strict=True)
    ]
    parts = shares(p.weight) if any(p.weight) else [0.0] * len(lengths)
    whole = sum(part * size for part, size in zip(parts, together, strict=True))
    taken = parts if p.normalize else p.weight
    return [p.lambda_ * whole * part / size for part, size in zip(taken, lengths, strict=True)]


class FedNova(Method):
    """Each expert's change is divided by its number of steps before the mean is taken.

    A plain mean is ruled by the experts that were trained longest. Here every step counts alike,
    and the mean change by step is taken as often as the runs were long on average. `steps` of 1
    for all is the weighted mean of task vectors.
    """

    name = "fednova"
    summary = "the mean of task vectors divided by their training steps, times the mean steps"
    advice = (
        "For runs of different length from one start, as in federated learning: the longer no "
        "longer counts for more. It needs each run's number of steps."
    )
    family = "arithmetic"
    formula = (
        "b + lambda t sum_i p_i d_i / a_i, p_i = w_i / sum w, t = sum_i p_i a_i   (the first p_i "
        "is w_i if normalize is false)"
    )
    source = "FedNova (Wang et al. 2020, arXiv 2007.07481)"
    variant = "the authors' code: with a proximal term t = sum_i p_i steps_i; no server momentum"
    params = {
        "steps": Param(float, REQUIRED, "optimizer steps this expert took", per_model=True, gt=0,
                       le=1e15, native=True),
        "weight": Param(float, 1.0, "how much this expert counts, as by its examples",
                        per_model=True, ge=0),
        "normalize": Param(bool, True, "divide by the sum of the weights"),
        "momentum": Param(float, 0.0, "momentum of its SGD", per_model=True, ge=0, lt=1,
                          native=True),
        "proximal": Param(float, 0.0, "its learning rate times its proximal term's factor",
                          per_model=True, ge=0, lt=1, native=True),
        "lambda": Param(float, 1.0, "factor on the merged task vector"),
    }  # fmt: skip
    example = """
merge_method: fednova
base_model: base
models:
  - model: expert_a
    parameters: {steps: 1000}
  - model: expert_b
    parameters: {steps: 3000}
"""

    def problem(self, p: Settings, experts: int) -> str | None:
        if p.normalize and not any(p.weight):
            return "all weights are 0; give one expert a weight above 0"
        if any(m and c for m, c in zip(p.momentum, p.proximal, strict=True)):
            return "momentum and proximal of one expert have no known count together; leave one out"
        return None

    def summed(self, p: Settings) -> list[float] | None:
        return _factors(p)

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        return {"factor": _factors(p)}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        return x.base + combination(x.deltas, s.factor)
