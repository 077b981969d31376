"""EMR-Merging's unified task vector, and what makes each task's own model of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import MergewiseError
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import WEIGHT, total

if TYPE_CHECKING:
    from torch import Tensor


class Emr(Method):
    """Elects the summed task vector's sign, and takes the largest change of that sign.

    The authors do not use the result as a model: each task's model is ``b + rescaler_i mask_i u``
    of the unified vector u (`emr_mask`, `emr_rescaler`). As one model for all tasks it is usually
    too large a step; `lambda` shortens it.
    """

    name = "emr"
    summary = "takes of every element the largest change of the sign that the sum has"
    advice = (
        "One shared vector of which a task's own model can be had back with masks and "
        "factors. By itself, without these, it favours whatever changed most."
    )
    family = "task vectors"
    formula = "g = sign(sum_i w_i d_i), 0 counting as -; b + lambda g max_i(max(0, g w_i d_i))"
    source = "EMR-Merging (Huang et al. 2024, arXiv 2405.17461)"
    variant = "paper and code: the unified vector alone, without the tasks' masks and rescalers"
    params = {
        "weight": WEIGHT,
        "lambda": Param(float, 1.0, "factor on the unified task vector", native=True),
    }
    example = """
merge_method: emr
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {lambda: 0.5}
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        parts = x.weighted(s.weight)
        positive = total(parts) > 0
        largest = torch.zeros_like(parts[0])
        for part in parts:
            largest = torch.maximum(largest, torch.where(positive, part, -part))
        return x.base + torch.where(positive, largest, -largest) * s.lambda_


def emr_mask(delta: Tensor, unified: Tensor) -> Tensor:
    """Where a task's vector has the unified vector's sign: its mask, bool."""
    return delta * torch.sign(unified) > 0


def emr_rescaler(
    deltas: Sequence[Tensor], unified: Sequence[Tensor], over: str = "elements"
) -> float:
    """The factor that gives a task's masked unified vector the mean size of its own.

    Args:
        deltas: one task's vector, tensor by tensor.
        unified: the unified vector's tensors, in the same order.
        over: `elements`, sums of |d| over all of them (paper, section 3.2); or `tensors`, sums of
            each tensor's mean (official code), where a bias counts like a matrix.

    Returns:
        The factor; 1 where nothing is left after masking.

    Raises:
        MergewiseError: if `over` is neither.
    """
    if over not in ("elements", "tensors"):
        raise MergewiseError(f"over: elements or tensors expected, got {over!r}")
    own = kept = 0.0
    for delta, common in zip(deltas, unified, strict=True):
        share = 1.0 if over == "elements" else 1.0 / max(1, delta.numel())
        masked = common.double().abs() * emr_mask(delta, common)
        own += share * float(delta.double().abs().sum())
        kept += share * float(masked.sum())
    return own / kept if kept > 0 else 1.0
