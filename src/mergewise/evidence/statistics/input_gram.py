"""Which input channels of a weight move together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.methods import Param

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._sites import Site
    from mergewise.methods import Settings


class InputGram(Statistic):
    """The Gram matrix of a weight's inputs."""

    name = "input_gram"
    summary = "per weight: X^T X of its inputs"
    sums = {"gram": "sum of x x^T over tokens [in, in]"}
    source = (
        "RegMean, Jin et al. 2023, arXiv 2212.09849; as the input factor of Kronecker-factored "
        "curvature: Martens & Grosse 2015, arXiv 1503.05671"
    )
    params = {
        "max_channels": Param(
            int, None, "leave out weights with more input channels, whose matrix is large", ge=1
        ),
    }
    reads = "inputs"

    def wants(self, site: Site, options: Settings) -> bool:
        most = options.max_channels
        return site.matrix and (most is None or site.channels[0] <= most)

    def forward(self, run: Pass, site: Site, inputs: Tensor, outputs: Tensor) -> None:
        # query, key and value are fed the same rows
        rows, gram = run.scratch.get("last", (None, None))
        if rows is not inputs:
            run.scratch.clear()
            gram = inputs.T @ inputs
            run.scratch["last"] = (inputs, gram)
        run.sums.add(site.tensor, "gram", gram)

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``gram``, per token [in, in]."""
        return {"gram": sums["gram"] / max(1, counts.get("tokens", 0))}

    @classmethod
    def describe(cls) -> str:
        return (
            "For the inputs x_t of a weight at tokens t = 1..n: sum_t x_t x_t^T. A bias takes no "
            "part. A convolution's inputs are its patches."
        )
