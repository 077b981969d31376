"""Gram matrices of the gradients for the outputs of linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise.evidence.models._sites import Site
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


class OutputGradientGram(GradientStatistic):
    """The output side of a Kronecker-factored Fisher (K-FAC; MaTS, Tam et al. 2024)."""

    name = "output_gradient_gram"
    summary = "Gram matrix of the gradients for a layer's outputs (K-FAC's output factor)"
    sums = {
        "gram": "sum over tokens of g g^T, [out, out]; only without `diagonal`",
        "squares": "sum over tokens of g^2, [out]; only with `diagonal`",
    }
    source = (
        "Martens & Grosse 2015, arXiv 1503.05671; MaTS, Tam, Bansal & Raffel 2024, arXiv 2312.04339"
    )
    params = {
        "labels": labels_param("model"),
        "samples": SAMPLES,
        "reduction": reduction_param("sum"),
        "diagonal": Param(bool, False, "the squares of each channel only"),
        "max_channels": Param(
            int, 16384, "leave out Gram matrices of more channels, such as a vocabulary's", ge=1
        ),
        "tensors": TENSORS,
    }
    of_parameters = False
    of_outputs = True

    def wants(self, site: Site, options: Settings) -> bool:
        """Whether the output of this site's module is described."""
        small = options.diagonal or site.channels[1] <= options.max_channels
        return small and super().wants(site, options)

    def output_gradients(self, run: Pass, site: Site, rows: Tensor) -> None:
        """Add the rows of one example, weighted by the probability of the labels."""
        if run.options.diagonal:
            run.sums.add(site.tensor, "squares", rows.square().sum(0) * weight_of(run))
        else:
            run.sums.add(site.tensor, "gram", rows.T @ rows * weight_of(run))

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Means over tokens (positions, for a convolution), under the names of the sums."""
        tokens = max(1, counts.get("tokens", 0))
        return {name: value / tokens for name, value in sums.items()}

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "G = mean over tokens of g g^T, where g is the gradient of the example's loss for "
            "the output of a layer at that token. With the input Gram matrix A it gives the "
            "block of the Fisher for the layer's weight, approximately as A kron G. Labels as "
            "for `fisher`."
        )
