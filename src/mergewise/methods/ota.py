"""OTA: task vectors weighted element by element with the curvature that training left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._roots import root
from mergewise.methods._select import kept_count
from mergewise.methods._weights import total

if TYPE_CHECKING:
    from torch import Tensor

_MEAN = "the base and the mean task vector"
_NEEDS = {
    "adam": Need("adam", "second_moment", "optimizers", "element", otherwise=_MEAN),
    "fisher": Need("fisher", "squares", "examples", "element", otherwise=_MEAN),
}
_CURVES = {0.5: "root", 1.0: "plain"}


class Ota(Method):
    """Curvature-weighted mean of task vectors, after a mask of each by saliency (FFG).

    An element's curvature v is Adam's second moment of the expert's training (or its Fisher
    information, `moment: fisher`), its saliency v d^2. The mask keeps the `density` share of the
    most salient, or with `threshold` those at or above it. Where all experts are masked, the base
    stays (`fallback: mean`: the mean of the experts). Tensors that some expert's evidence does
    not describe get the mean task vector.
    """

    name = "ota"
    summary = "task vectors weighted by Adam's second moments, the least salient changes masked"
    advice = (
        "When the optimizer's states of the trainings were kept: they say which changes were "
        "steep. Without Adam's second moments it cannot be used."
    )
    formula = "b + sum_i P_i d_i / sum_i P_i, P_i = (v_i^power + eps) [v_i d_i^2 kept]"
    source = "OTA Merging with Fast Fisher Grafting (2025, arXiv 2509.11167)"
    variant = "the authors' configurations: eps 1e-24 where their code's default is 1e-8"
    params = {
        "moment": Param(
            str,
            "adam",
            "the curvature: Adam's second moments, or Fisher information",
            choices=("adam", "fisher"),
            native=True,
        ),
        "power": Param(float, 0.5, "of the curvature, as a weight", gt=0, native=True),
        "eps": Param(
            float,
            1e-24,
            "added to every weight; far below the curvature's power, or all weigh the same",
            ge=0,
            native=True,
        ),
        "density": Param(
            float,
            1.0,
            "share of the changes kept by saliency",
            per_model=True,
            ge=0,
            le=1,
            native=True,
        ),
        "threshold": Param(
            float, None, "least saliency kept, in place of a share", per_model=True, ge=0,
            native=True,
        ),
        "granularity": Param(
            str,
            "tensor",
            "over what the density's elements are ranked: each tensor, or the whole model",
            choices=("tensor", "model"),
            native=True,
        ),
        "fallback": Param(
            str,
            "base",
            "what stands where all are masked",
            choices=("base", "mean"),
            native=True,
        ),
    }  # fmt: skip
    example = """
merge_method: ota
base_model: base
models:
  - model: expert_a
    evidence: expert_a.adam.safetensors
  - model: expert_b
    evidence: expert_b.adam.safetensors
parameters: {density: 0.4}
"""

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return (_NEEDS[p.moment],)

    def problem(self, p: Settings, experts: int) -> str | None:
        for density, threshold in zip(p.density, p.threshold, strict=True):
            if threshold is not None and density < 1:
                return (
                    f"density {density:g} and threshold {threshold:g} both say what is kept; "
                    "give one of them"
                )
        if len({threshold is None for threshold in p.threshold}) > 1:
            return "threshold is given for some models only; give it for all of them or none"
        return None

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        if not x.evidence or s.threshold[0] is not None:
            return []
        return self._saliency(x)

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[kept_count(density, n)] for density in p.density]

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        least = [None if t is None else math.sqrt(t) for t in p.threshold]
        return {"curve": _CURVES.get(p.power, "power"), "least": least}

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        mean = total(x.deltas) / len(x.deltas)
        if not x.evidence:
            return x.base + mean
        weights = [
            torch.where(kept, _powered(v, s) + s.eps, torch.zeros_like(v))
            for kept, v in zip(self._kept(x, s), x.evidence[0], strict=True)
        ]
        whole = total(weights)
        known = whole > 0
        safe = torch.where(known, whole, torch.ones_like(whole))
        moved = total([delta * (w / safe) for delta, w in zip(x.deltas, weights, strict=True)])
        rest = torch.zeros_like(mean) if s.fallback == "base" else mean
        return x.base + torch.where(known, moved, rest)

    def _saliency(self, x: Inputs) -> list[Tensor]:
        # the root: v d^2 itself may leave float32's range
        return [root(v) * d.abs() for v, d in zip(x.evidence[0], x.deltas, strict=True)]

    def _kept(self, x: Inputs, s: Settings) -> list[Tensor]:
        saliency = self._saliency(x)
        if s.threshold[0] is not None:
            return [one >= least for one, least in zip(saliency, s.least, strict=True)]
        return [x.at_least(one, s.thresholds[i][0], i) for i, one in enumerate(saliency)]


def _powered(v: Tensor, s: Settings) -> Tensor:
    if s.curve == "root":
        return root(v)
    return v if s.curve == "plain" else v**s.power
