"""Which experts of a mixture the data is sent to."""

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


class RouterUsage(Statistic):
    """How often each expert is chosen, and with what weight."""

    name = "router_usage"
    summary = "per router of a mixture of experts: tokens and weight that go to each expert"
    sums = {
        "chosen": "tokens sent to each expert [experts]",
        "weight": "sum of the weights with which its output was added [experts]",
        "probability": "sum over all tokens of the router's normalised scores [experts]",
    }
    source = (
        "load and importance: Shazeer et al. 2017, arXiv 1701.06538; for merging experts: "
        "MC-SMoE, Li et al. 2023, arXiv 2310.01334"
    )
    params = {
        "scores": Param(
            str, None, "how logits become probabilities; by default as the model's config says",
            choices=("softmax", "sigmoid"),
        ),
    }  # fmt: skip

    def wants(self, site: Site, options: Settings) -> bool:
        return site.kind == "router"

    def routing(
        self, run: Pass, site: Site, logits: Tensor, chosen: Tensor, weights: Tensor
    ) -> None:
        experts = logits.shape[1]
        flat = chosen.reshape(-1)
        zeros = torch.zeros(experts, dtype=torch.float64, device=logits.device)
        ones = torch.ones_like(flat, dtype=torch.float64)
        run.sums.add(site.tensor, "chosen", zeros.index_add(0, flat, ones))
        given = weights.reshape(-1).double()
        run.sums.add(site.tensor, "weight", zeros.index_add(0, flat, given))
        probability = _probability(logits, _kind(run, site))
        run.sums.add(site.tensor, "probability", probability.sum(dim=0, dtype=torch.float64))

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``frequency``, ``weight`` and ``probability`` per token, and ``load`` that sums to 1."""
        total = max(1, counts.get("tokens", 0))
        return {
            "frequency": sums["chosen"] / total,
            "load": sums["chosen"] / sums["chosen"].sum().clamp_min(1),
            "weight": sums["weight"] / total,
            "probability": sums["probability"] / total,
        }

    @classmethod
    def describe(cls) -> str:
        return (
            "For each token t, the k experts e that its router chooses, with weights w_te, and "
            "the normalised scores p_t: per expert the number of t that chose it, sum_t w_te over "
            "these, and sum_t p_te over all t."
        )


def _kind(run: Pass, site: Site) -> str:
    told = run.options.scores or getattr(run.config, "scoring_func", None)
    if told in ("softmax", "sigmoid"):
        return str(told)
    # routers of DeepSeek V3's kind correct sigmoid scores by a bias
    return "sigmoid" if hasattr(site.module, "e_score_correction_bias") else "softmax"


def _probability(logits: Tensor, kind: str) -> Tensor:
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    scores = logits.sigmoid()
    return scores / scores.sum(dim=-1, keepdim=True).clamp_min(1e-20)
