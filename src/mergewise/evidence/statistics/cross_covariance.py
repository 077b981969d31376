"""How the features of two models on the same data correspond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.methods import Param

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._sites import Site
    from mergewise.methods import Settings

_KINDS = ("linear", "conv", "conv1d_transposed", "embedding", "norm")


class CrossCovariance(Statistic):
    """Covariance between a module's outputs in two models."""

    name = "cross_covariance"
    summary = "per module: covariance of its output channels in two models (--with OTHER)"
    sums = {
        "sum_a": "sum over tokens of the model's outputs a [out]",
        "sum_b": "sum of the other model's outputs b [out]",
        "squares_a": "sum of a^2 [out]",
        "squares_b": "sum of b^2 [out]",
        "product": "sum of a b^T [out of a, out of b]",
        "gram_a": "sum of a a^T [out, out]; with `within`",
        "gram_b": "sum of b b^T [out, out]; with `within`",
    }
    source = (
        "activation matching: Li et al. 2015, arXiv 1511.07543, and Git Re-Basin, Ainsworth et "
        "al. 2022, arXiv 2209.04836; within models too: ZipIt!, Stoica et al. 2023, "
        "arXiv 2305.03053, and CCA Merge, Horoi et al. 2024, arXiv 2407.05385"
    )
    params = {
        "max_channels": Param(
            int, 8192, "leave out modules with more output channels, such as large heads", ge=1
        ),
        "within": Param(bool, False, "also each model's own matrix, as ZipIt and CCA need"),
    }
    reads = "outputs"
    two_models = True

    def wants(self, site: Site, options: Settings) -> bool:
        return site.kind in _KINDS and site.channels[1] <= options.max_channels

    def pair(self, run: Pass, site: Site, outputs: Tensor, others: Tensor) -> None:
        def add(name: str, value: Tensor) -> None:
            run.sums.add(site.tensor, name, value)

        for letter, rows in (("a", outputs), ("b", others)):
            add(f"sum_{letter}", rows.sum(dim=0, dtype=torch.float64))
            add(f"squares_{letter}", rows.square().sum(dim=0, dtype=torch.float64))
            if run.options.within:
                add(f"gram_{letter}", rows.T @ rows)
        add("product", outputs.T @ others)

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``mean_a``, ``std_a``, ``mean_b``, ``std_b`` [out]; ``covariance``, ``correlation``.

        Channels that never change have correlation 0. With `within` also ``covariance_a`` and
        ``covariance_b``.
        """
        total = max(1, counts.get("tokens", 0))
        found = {f"mean_{x}": sums[f"sum_{x}"] / total for x in "ab"}
        for x in "ab":
            variance = sums[f"squares_{x}"] / total - found[f"mean_{x}"].square()
            found[f"std_{x}"] = variance.clamp_min(0).sqrt()
        a, b = found["mean_a"], found["mean_b"]
        found["covariance"] = sums["product"].double() / total - a[:, None] * b[None, :]
        scale = found["std_a"][:, None] * found["std_b"][None, :]
        ratio = found["covariance"] / scale.clamp_min(1e-300)
        found["correlation"] = ratio.where(scale > 0, ratio.new_zeros(())).clamp(-1, 1)
        for x, mean in (("a", a), ("b", b)):
            if f"gram_{x}" in sums:
                own = sums[f"gram_{x}"].double() / total
                found[f"covariance_{x}"] = own - mean[:, None] * mean[None, :]
        return found

    @classmethod
    def describe(cls) -> str:
        return (
            "For a module's outputs a_t in one model and b_t in another at the same tokens "
            "t = 1..n: sum_t a_t, sum_t b_t, sum_t a_t^2, sum_t b_t^2, sum_t a_t b_t^T. The "
            "models need the same modules, tokenizer and padding, not the same weights."
        )
