"""What is measured on the logits of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.evidence.evaluators._base import Metric

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15

METRICS = {
    "accuracy": Metric("max", "share of examples whose most likely class is the label"),
    "macro_accuracy": Metric("max", "mean of the per-class recalls, over classes in the data"),
    "nll": Metric("min", "mean negative log likelihood of the label, in nats"),
    "ece": Metric(
        "min",
        f"expected calibration error: mean |confidence − accuracy| over {BINS} equal-width bins "
        "of confidence, weighted by their examples (Guo et al. 2017, arXiv 1706.04599)",
    ),
    "brier": Metric(
        "min", "mean squared distance of the probabilities from the label's, summed over classes"
    ),
}


def classification(
    logits: Tensor, labels: Tensor, names: Sequence[str] | None
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Metrics, with ``recall_<class>`` for every class in the data, and outcomes by example.

    Args:
        logits: [examples, classes], finite.
        labels: int64 [examples].
        names: of the classes; without them they are numbered from 0.
    """
    log_p = logits.double().log_softmax(dim=-1)
    p = log_p.exp()
    confidence, prediction = p.max(dim=-1)
    correct = prediction == labels
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    recalls = _recalls(correct, labels, names)
    target = torch.nn.functional.one_hot(labels, logits.shape[1]).to(p)
    metrics = {
        "accuracy": float(correct.double().mean()),
        "macro_accuracy": sum(recalls.values()) / len(recalls),
        "nll": float(loss.mean()),
        "ece": calibration_error(confidence, correct),
        "brier": float((p - target).square().sum(dim=-1).mean()),
        **recalls,
    }
    outcomes = {
        "correct": correct.long().tolist(),
        "prediction": prediction.tolist(),
        "loss": loss.tolist(),
        "confidence": confidence.tolist(),
    }
    return metrics, outcomes


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error; bin k holds confidences in (k/bins, (k+1)/bins]."""
    where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, where, confidence.double() - correct.double())
    return float(gap.abs().sum() / len(confidence))


def _recalls(correct: Tensor, labels: Tensor, names: Sequence[str] | None) -> dict[str, float]:
    present = sorted(set(labels.tolist()))
    called = names or {k: str(k) for k in present}
    return {f"recall_{called[k]}": float(correct[labels == k].double().mean()) for k in present}
