"""Metrics-weighted averaging of the checkpoints of one training run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergewise.errors import GuideError
from mergewise.guides._base import Ask, Guide, Guided
from mergewise.guides._document import explicit
from mergewise.guides._training_log import logged
from mergewise.guides._weighting import commented, weight_problem, weights
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

_LESS = ("loss", "perplexity", "error")
_MORE = ("step", "epoch", "accuracy", "f1", "reward")


class Mwa(Guide):
    """Weights of checkpoints from what their trainer logged."""

    name = "mwa"
    summary = "weights of a run's checkpoints from the loss, or the step, that was logged"
    data = "log"
    source = "Metrics-Weighted Averaging, Yu and Choi 2025, arXiv 2504.18580"
    variant = (
        "the formula is unverified, the paper's text being out of reach: weights that rise with "
        "the step or fall with the loss, sharpened by one exponent"
    )
    verified = "idea"
    writes = "weight"
    based = False
    params = {
        "metric": Param(str, "loss", "what was logged: loss, eval_loss, step, ..."),
        "p": Param(float, 1.0, "exponent: 0 gives the mean, a great one the best checkpoint", ge=0),
        "better": Param(
            str, "auto", "whether less or more of it is better; auto goes by its name",
            choices=("auto", "less", "more"),
        ),
        "log": Param(
            str, None, "a trainer's state, or a table of checkpoints (csv, json, jsonl); default: "
            "the trainer_state.json in each checkpoint's folder",
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return unclear(settings) or weight_problem(recipe)

    def run(self, ask: Ask) -> Guided:
        settings = ask.settings
        found = logged(ask, settings.metric, settings.log)
        shares = logged_weights(settings, [expert.label for expert in ask.experts], found)
        text, recipe, notes = explicit(self, ask, weights(shares))
        told = [
            f"{expert.label}: {settings.metric} {value:.6g}, weight {share:.6g}"
            for expert, value, share in zip(ask.experts, found, shares, strict=True)
        ]
        return Guided(commented(text, told), recipe, (), (*told, *notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "w_i = m_i^p / sum_j m_j^p; m_i the metric of checkpoint i where more is better (the "
            "step), 1 / metric where less is (the loss).\n"
            "The metric is the last one logged up to the checkpoint's own step."
        )


def unclear(settings: Settings) -> str | None:
    """Why it is not known whether less or more of the metric is better; None if it is."""
    if _better(settings) is None:
        return f"is less or more {settings.metric} better? Set better=less or better=more"
    return None


def logged_weights(
    settings: Settings, labels: Sequence[str], found: Sequence[float]
) -> list[float]:
    """Weights of checkpoints by what was logged of them, with Mwa's settings.

    Raises:
        GuideError: if a metric is not above 0.
    """
    for label, value in zip(labels, found, strict=True):
        if value <= 0:
            raise GuideError(
                f"mwa: {settings.metric} of {label} is {value:g}; weights are powers "
                "of it, so a number above 0 is expected. Choose another metric"
            )
    return metric_weights(found, settings.p, _better(settings) == "less")


def metric_weights(metrics: Sequence[float], p: float, less: bool) -> list[float]:
    """Weights with sum 1; `metrics` are above 0."""
    logs = [p * (-math.log(m) if less else math.log(m)) for m in metrics]
    powers = [math.exp(each - max(logs)) for each in logs]
    return [power / sum(powers) for power in powers]


def _better(settings: Settings) -> str | None:
    if settings.better != "auto":
        return str(settings.better)
    name = settings.metric.lower()
    if any(part in name for part in _LESS):
        return "less"
    return "more" if any(part in name for part in _MORE) else None
