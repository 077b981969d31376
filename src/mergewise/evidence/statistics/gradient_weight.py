"""Gradient times weight: what removing a parameter would do to the loss, to first order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._gradient_base import (
    SAMPLES,
    TENSORS,
    GradientPass,
    GradientStatistic,
    labels_param,
    reduction_param,
)
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

_KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda g, w: g * w,
    "absolute": lambda g, w: (g * w).abs(),
    "square": lambda g, w: (g * w).square(),
    "gradient": lambda g, w: g,
    "gradient_absolute": lambda g, w: g.abs(),
    "channels": lambda g, w: (g * w).flatten(0, -2).sum(0).square(),
}


class GradientWeight(GradientStatistic):
    """First-order sensitivity of the loss to each parameter."""

    name = "gradient_weight"
    summary = "gradient times weight: first-order sensitivity of the loss"
    sums = {
        "product": "sum of g*w, shape of the tensor; minus what the loss gains without it",
        "absolute": "sum of |g*w| of single examples, shape of the tensor",
        "square": "sum of (g*w)^2 of single examples, shape of the tensor",
        "gradient": "sum of g, shape of the tensor; times a task vector it is that one's effect",
        "gradient_absolute": "sum of |g| of single examples, shape of the tensor",
        "channels": "sum of (sum of g*w over a last-axis channel)^2, [size of the last axis]",
    }
    data = "labelled"
    source = (
        "SNIP (Lee et al. 2019, arXiv 1810.02340); Sens-Merging (Liu et al. 2025, arXiv "
        "2502.12420); RCP-Merging (2025, arXiv 2508.03140)"
    )
    params = {
        "keep": Param(str, "product,absolute", f"sums to keep, by commas: {', '.join(_KEPT)}"),
        "labels": labels_param("data"),
        "samples": SAMPLES,
        "reduction": reduction_param("mean"),
        "tensors": TENSORS,
    }

    def check(self, options: Settings) -> None:
        """Find what can be found wrong in the options.

        Raises:
            EvidenceError: for a sum that is not known.
        """
        for name in _kept(options):
            if name not in _KEPT:
                raise EvidenceError(
                    f"gradient_weight: keep: {name!r} is no sum; expected some of "
                    f"{', '.join(_KEPT)}, separated by commas"
                )

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        """Add what is kept, weighted by the probability of the labels."""
        assert isinstance(run, GradientPass)
        for name, gradient in gradients.items():
            for kept in _kept(run.options):
                if kept != "channels" or gradient.dim() > 1:
                    value = _KEPT[kept](gradient, run.weights[name])
                    run.sums.add(name, kept, value * run.weight)

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Means over examples, under the names of the sums."""
        examples = max(1, counts.get("examples", 0))
        return {name: value / examples for name, value in sums.items()}

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "With g = d loss(x) / d w for one example x: means over examples of g*w (`product`), "
            "|g*w| (`absolute`), (g*w)^2 (`square`), g (`gradient`) and |g| "
            "(`gradient_absolute`). To first order, setting w to 0 changes the loss by -g*w, and "
            "taking a task vector t out of a model by -g*t. `channels`, for matrices: (sum over "
            "all axes but the last of g*w)^2, the Fisher information of a mask on each input "
            "channel of a linear layer stored [out, in]."
        )


def _kept(options: Settings) -> list[str]:
    return [name.strip() for name in options.keep.split(",")]
