"""Thresholds over a whole model, for methods told `granularity: model`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mergewise.engine._block import Threshold
from mergewise.engine._select import select
from mergewise.engine._task import TensorTask
from mergewise.engine._work import Work

_REFERENCE = 1_000_000_000


def model_thresholds(tasks: list[TensorTask]) -> Work:
    """Thresholds by tensor name for the tasks that ask for whole-model granularity.

    Tasks of the same models that want the same share of their elements are pooled; those with
    other densities, or of other models (some lack the tensor, or the slice names others), form
    pools of their own. A generator (see `_task`); its value is a dict.
    """
    pools: dict[Any, list[TensorTask]] = defaultdict(list)
    for task in tasks:
        settings = task.kernels.settings
        if getattr(settings, "granularity", "") == "model" and task.wants_thresholds():
            wanted = task.method.ranks(settings, _REFERENCE, [_REFERENCE] * len(task.experts))
            models = tuple(source.model for source in (task.base, *task.experts) if source)
            pools[task.method.name, str(wanted), models].append(task)
    found: dict[str, list[list[Threshold]]] = {}
    for pool in pools.values():
        for task in pool:
            yield from task.prepare_inputs()
        thresholds = yield from select(pool)
        found |= {task.name: thresholds for task in pool}
    return found
