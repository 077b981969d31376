"""What must be known of a whole model before its first tensor: thresholds, totals."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from mergewise.engine._block import Shared
from mergewise.engine._select import find_thresholds
from mergewise.engine._task import TensorTask
from mergewise.engine._work import Work

_REFERENCE = 1_000_000_000


def whole_model(tasks: list[TensorTask]) -> Work:
    """What the tasks of one stage share, by tensor name. A generator (see `_task`)."""
    found: dict[str, Shared] = {}
    for pool in _threshold_pools(tasks):
        for task in pool:
            yield from task.prepare_inputs()
        thresholds = yield from find_thresholds(pool)
        found |= {task.name: Shared(thresholds=thresholds) for task in pool}
    for pool in _total_pools(tasks):
        parts = []
        for task in pool:
            parts.append((yield from task.find_totals()))
        names = {name for part in parts for name in part}
        totals = {name: math.fsum(part.get(name, 0.0) for part in parts) for name in names}
        for task in pool:
            known = found.get(task.name, Shared())
            found[task.name] = Shared(known.thresholds, totals)
    return found


def _models(task: TensorTask) -> tuple[str, ...]:
    return tuple(source.model for source in (task.base, *task.experts) if source)


def _threshold_pools(tasks: list[TensorTask]) -> list[list[TensorTask]]:
    """Tasks that ask for whole-model granularity and want the same thresholds.

    Those with other densities, of other models (some lack the tensor, or the slice names
    others), or whose scores do not compare, form pools of their own.
    """
    pools: dict[Any, list[TensorTask]] = defaultdict(list)
    for task in tasks:
        settings = task.kernels.settings
        if getattr(settings, "granularity", "") == "model" and task.wants_thresholds():
            wanted = task.method.ranks(settings, _REFERENCE, [_REFERENCE] * len(task.experts))
            scale = task.method.scale(settings, bool(task.evidence))
            pools[task.method.name, scale, str(wanted), _models(task)].append(task)
    return list(pools.values())


def _total_pools(tasks: list[TensorTask]) -> list[list[TensorTask]]:
    """Tasks of the same models whose method sums its terms over all of them."""
    pools: dict[Any, list[TensorTask]] = defaultdict(list)
    for task in tasks:
        if task.size and task.method.pooled(task.kernels.settings):
            pools[task.method.name, _models(task)].append(task)
    return list(pools.values())
