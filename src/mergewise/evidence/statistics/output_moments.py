"""The distribution of each output channel of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise.evidence.statistics._base import PRUNED, Pass, Statistic
from mergewise.evidence.statistics.input_moments import means, moments

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._sites import Site
    from mergewise.methods import Settings


class OutputMoments(Statistic):
    """Means and standard deviations of a weight's output channels."""

    name = "output_moments"
    summary = "per output channel: mean, standard deviation, mean of |y|, norm"
    sums = {
        "sum": "sum of y over tokens [out]",
        "sum_abs": "sum of |y| [out]",
        "sum_squares": "sum of y^2 [out]",
    }
    source = "REPAIR, Jordan et al. 2022, arXiv 2211.08403"
    params = {"pruned": PRUNED}
    reads = "outputs"

    def wants(self, site: Site, options: Settings) -> bool:
        return site.kind != "other"

    def forward(self, run: Pass, site: Site, inputs: Tensor, outputs: Tensor) -> None:
        for name, value in moments(outputs).items():
            run.sums.add(site.tensor, name, value)

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``mean``, ``mean_abs``, ``rms``, ``std`` (of the tokens, not n - 1), ``norm`` [out]."""
        found = means(sums, counts)
        variance = (found["rms"].square() - found["mean"].square()).clamp_min(0)
        return {**found, "std": variance.sqrt()}

    @classmethod
    def describe(cls) -> str:
        return (
            "For the outputs y_t of a module at tokens t = 1..n, bias included, per channel j: "
            "sum_t y_tj, sum_t |y_tj|, sum_t y_tj^2. An expert's are those of its matrix, before "
            "the router's weight."
        )
