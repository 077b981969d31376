"""How much memory a merge needs, and with how many workers it stays within a budget."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from mergewise.constants import BLOCK_ELEMENTS
from mergewise.errors import MergewiseError
from mergewise.methods import Access, Settings, get_method
from mergewise.plan import MergePlan, TensorPlan

_RUNTIME = 280_000_000  # Python and torch, measured
_SELECTED = 0.03  # share of elements collected around a threshold, as 8-byte keys


@dataclass(frozen=True)
class Memory:
    """An estimate of peak resident memory in bytes.

    Attributes:
        fixed: the runtime, and keys collected for thresholds.
        per_worker: blocks (or whole tensors) one worker holds.
        largest: the tensor that decides it.
    """

    fixed: int
    per_worker: int
    largest: str

    def peak(self, workers: int) -> int:
        return self.fixed + workers * self.per_worker


def estimate(plan: MergePlan) -> Memory:
    """Estimate the memory of a plan from shapes alone."""
    worst, name, selected = 0, "", 0
    for stage in plan.stages:
        method = get_method(stage.stage.method)
        for tensor in stage.tensors.values():
            if tensor.fate == "copy":
                continue
            models = len(tensor.inputs)
            held = _held_elements(tensor, stage.stage.method)
            # as stored, and as float32 copies of inputs, intermediates and the result
            need = held * (4 * models + 4 * (2 * models + 4))
            if need > worst:
                worst, name = need, tensor.meta.name
            if type(method).scores is not _plain_scores():
                selected = max(selected, int(tensor.meta.elements * _SELECTED) * 16 * models)
    return Memory(_RUNTIME + selected, worst, name)


def _plain_scores() -> object:
    from mergewise.methods import Method

    return Method.scores


def _held_elements(tensor: TensorPlan, method_name: str) -> int:
    access = get_method(method_name).access(Settings(tensor.values))
    if access is Access.WHOLE:
        return tensor.meta.elements
    shape = tensor.meta.shape
    row = 1
    if access is Access.ROWS and shape:
        row = math.prod(shape[1:]) if len(shape) >= 4 else shape[-1]
    return min(tensor.meta.elements, max(BLOCK_ELEMENTS, row))


def choose_workers(plan: MergePlan, workers: int | None, budget: int | None) -> int:
    """The number of workers: as asked, or one per processor, but within the memory budget.

    Raises:
        MergewiseError: if even one worker would exceed the budget.
    """
    wanted = max(1, workers or _processors())
    if budget is None:
        return wanted
    memory = estimate(plan)
    if memory.peak(1) > budget:
        raise MergewiseError(
            f"about {memory.peak(1):,} bytes of memory are needed (tensor {memory.largest}), more "
            f"than the {budget:,} of --memory; allow more, or use a method that works by blocks"
        )
    return max(1, min(wanted, (budget - memory.fixed) // max(1, memory.per_worker)))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
