"""Diagonal Fisher information: mean squared per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._gradient_base import (
    SAMPLES,
    TENSORS,
    GradientStatistic,
    labels_param,
    reduction_param,
    weight_of,
)
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Fisher(GradientStatistic):
    """How much the model's predictions change with each parameter (Matena & Raffel 2022)."""

    name = "fisher"
    summary = "diagonal Fisher information: squared per-example gradients"
    sums = {"squares": "sum of squared gradients of the log-likelihood, shape of the tensor"}
    source = "Matena & Raffel 2022, arXiv 2111.09832"
    params = {
        "labels": labels_param("model"),
        "samples": SAMPLES,
        "reduction": reduction_param("sum"),
        "per": Param(
            str,
            "example",
            "square each example's gradient, or (not the Fisher) the mean gradient of a batch",
            choices=("example", "batch"),
        ),
        "batch_size": Param(int, None, "examples a batch, with `per: batch`", ge=1),
        "tensors": TENSORS,
    }

    def check(self, options: Settings) -> None:
        """Find what can be found wrong in the options.

        Raises:
            EvidenceError: for a batch size without batches, or batches where labels are many.
        """
        batched = options.per == "batch"
        if batched != (options.batch_size is not None):
            raise EvidenceError(
                "fisher: `per: batch` and `batch_size` go together; "
                f"got per: {options.per}, batch_size: {options.batch_size}"
            )
        if batched and (options.labels == "expected" or options.samples != 1):
            raise EvidenceError(
                "fisher: `per: batch` takes one label for each prediction; set `labels` to "
                "model, argmax or data and leave `samples` at 1"
            )

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        """Add the squares, each weighted by the probability of its labels."""
        for name, gradient in gradients.items():
            run.sums.add(name, "squares", gradient.square() * weight_of(run))

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``fisher``, the mean over examples; of batches it is called ``batch_squares``."""
        if batches := counts.get("batches"):
            return {"batch_squares": sums["squares"] / batches}
        return {"fisher": sums["squares"] / max(1, counts.get("examples", 0))}

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "F = mean over examples x of E_y [(d log p(y|x) / d w)^2], elementwise. With labels "
            "drawn from the model or their exact expectation this is the diagonal of the Fisher "
            "information; with the data's labels, the empirical Fisher. For text y are the "
            "tokens of x, each given the ones before it. `per: batch` squares the mean gradient "
            "of a batch instead, as some published code does: not the Fisher, and dependent on "
            "the batch size and the order of the data."
        )
