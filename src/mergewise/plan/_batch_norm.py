"""Running means and variances of batch norms: pooled as Gaussians, without data.

A plain average of running variances leaves out how far the means lie apart, and a task vector
added to a variance may make it negative. Pooled are the activations' distributions instead: with
shares w of the models, ``mean = sum w m`` and ``var = sum w v + sum w (m - mean)^2``.

Source: Training-Free Model Merging for Multi-target Domain Adaptation (Li et al. 2024, arXiv
2407.13771), which estimates merged statistics under a Gaussian prior; here the shares are the
models' weights, whatever the number of batches each has tracked.
"""

from __future__ import annotations

from dataclasses import replace

from mergewise.methods import Method, Settings
from mergewise.plan._model import Input, TensorPlan

_MEAN, _VARIANCE = "running_mean", "running_var"


def is_statistic(name: str) -> bool:
    """Whether a tensor is a batch norm's running mean or variance, by its name."""
    return name.rpartition(".")[2] in (_MEAN, _VARIANCE)


def sibling(name: str) -> str:
    """The name of the mean that belongs to a variance, or the other way round."""
    start, dot, last = name.rpartition(".")
    return start + dot + (_MEAN if last == _VARIANCE else _VARIANCE)


def formula(planned: TensorPlan) -> str:
    """What a statistic that is pooled becomes."""
    return "sum w v + sum w (m - mean)^2, mean = sum w m" if planned.means else "sum w m"


def pooled(planned: TensorPlan, method: Method) -> TensorPlan | None:
    """The plan of a statistic that is pooled; None if there is nothing to pool it with.

    Args:
        planned: how the method would merge it.
    """
    if len(planned.inputs) < 2:
        return None
    beside = [_beside(item) for item in planned.inputs]
    others = tuple(item for item in beside if item is not None)
    if len(others) < len(beside):
        return None
    settings = Settings(planned.values)
    shares = method.mixture(settings, planned.base is not None, len(planned.experts))
    return replace(
        planned,
        fate="pool",
        base=None,
        experts=planned.inputs,
        values={"weight": shares},
        origins={"weight": ["its share of the result"] * len(shares)},
        statistics=(),
        in_dtype=None,
        reason="a batch norm's: the models' activations are pooled (batch_norm: pool)",
        means=others if planned.meta.name.endswith(_VARIANCE) else (),
    )


def _beside(item: Input) -> Input | None:
    """The same model's other statistic, if it has one of this shape."""
    meta = item.view.tensors.get(sibling(item.meta.name))
    alike = meta is not None and meta.shape == item.meta.shape and meta.dtype[0] in "FB"
    return Input(item.view, meta) if meta and alike else None
