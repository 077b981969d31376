"""Exact order statistics of scores that are never held at once, let alone sorted.

Elements are ordered by the 64-bit key (score's bits, hash of the position): the hash breaks ties,
so exactly the wanted number of elements lies at or above a threshold. A small sample brackets the
wanted key; one pass over the data counts the keys above the bracket and collects those inside it
(about a percent), among which the key is then picked. If the sample misled, counting passes
narrow the bracket first; so they do where a bracket would hold too much to collect.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise.engine import _compile
from mergewise.engine._block import Threshold
from mergewise.engine._keys import keys
from mergewise.engine._work import Parallel, Range, Work
from mergewise.methods import Access

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mergewise.engine._task import TensorTask

_TOP = (1 << 64) - 1
_COLLECT = 1 << 24  # most keys (128 MiB) collected for one threshold
_RUN = 2048  # elements per sampled run
_BINS = 4096


@dataclass
class _Target:
    """One wanted order statistic: the `rank`-th largest key of score `score` lies in a bracket."""

    score: int
    rank: int
    low: int = 0
    high: int = _TOP
    above: int = 0
    found: int | None = None
    exact: bool = False


def find_thresholds(tasks: list[TensorTask]) -> Work:
    """What `s.thresholds` is for `tasks` taken together: of all rounds of their method."""
    rounds = tasks[0].method.rounds
    if rounds == 1:
        return (yield from select(tasks))
    found: list[list[Threshold]] = []
    for turn in range(rounds):
        for task in tasks:
            task.kernels.extend({"round": turn, "thresholds": list(found)})
        found += yield from select(tasks)
    return found


def select(tasks: list[TensorTask]) -> Work:
    """Thresholds of the scores of `tasks` taken together, for each score and each wanted rank.

    A generator (see `_task`); its value is a list (scores) of lists (ranks) of `Threshold`.
    """
    method, settings = tasks[0].method, tasks[0].kernels.settings
    n = sum(task.size for task in tasks)
    items = [(task, where) for task in tasks for where in task.ranges()]
    nonzero: list[int] = []
    if method.counts_nonzero:
        counts = yield Parallel(_nonzero, items)
        nonzero = [sum(column) for column in zip(*counts, strict=True)]
    wanted = method.ranks(settings, n, nonzero)
    table = [[_target(i, r, n) for r in ranks] for i, ranks in enumerate(wanted)]
    open_targets = [t for row in table for t in row if t.exact or 0 < t.rank < n]
    if open_targets and len(items) > 1:
        yield from _bracket_by_sample(tasks, open_targets, n)
    while open_targets:
        yield from _pass(items, open_targets)
        open_targets = [t for t in open_targets if t.found is None]
        for target in open_targets:
            if target.rank <= target.above:
                target.low, target.high = target.high + 1, _TOP
            else:
                target.low, target.high = 0, max(target.low - 1, 0)
            yield from _narrow(items, target)
    return [[_threshold(t, n) for t in row] for row in table]


def _target(score: int, rank: int, n: int) -> _Target:
    return _Target(score, rank) if rank >= 0 else _Target(score, n + 1 + rank, exact=True)


def _threshold(target: _Target, n: int) -> Threshold:
    if target.rank <= 0:
        return Threshold(math.inf, 0)
    if target.rank >= n and not target.exact:
        return Threshold(-1.0, 0)
    import numpy as np

    assert target.found is not None
    bits = np.uint32(target.found >> 32)
    tie = np.uint32((target.found & 0xFFFFFFFF) ^ 0x80000000)
    return Threshold(float(bits.view(np.float32)), int(tie.view(np.int32)))


def count_kept(task: TensorTask, where: Range, score: int, threshold: Threshold) -> int:
    """How many elements of a block have a score, the `score`-th, at or above a threshold."""
    import numpy as np

    if threshold.value == math.inf:
        return 0
    bits = int(np.float32(threshold.value).view(np.uint32))
    key = bits << 32 | (threshold.tie & 0xFFFFFFFF) ^ 0x80000000
    if threshold.value < 0 or key == 0:
        return where[1]
    target = _Target(score, 0, low=_TOP, high=key - 1)
    return _count(task, where[0], task.scores(where)[score], target)[0]


def _nonzero(item: tuple[TensorTask, Range]) -> list[int]:
    task, where = item
    return [int((score != 0).sum()) for score in task.scores(where)]


def _sample_ranges(task: TensorTask, share: float) -> list[Range]:
    """Evenly spread runs that make up `share` of the task's elements."""
    wanted = min(task.size, math.ceil(task.size * share))
    if task.access is Access.WHOLE:
        return task.ranges()
    # a small tensor gives few elements, or it would count for more than its share
    run = task.columns if task.access is Access.ROWS else min(_RUN, max(1, wanted // 4))
    count = min(max(1, math.ceil(wanted / run)), task.size // run)
    last = (task.size - run) // run
    starts = sorted({round(i * last / max(1, count - 1)) * run for i in range(count)})
    return [(at, run) for at in starts]


def _bracket_by_sample(tasks: list[TensorTask], targets: list[_Target], n: int) -> Work:
    import numpy as np

    all_items = [(task, where) for task in tasks for where in task.ranges()]
    size = min(max(n // 128, 1 << 16), 1 << 22)
    items = [(task, where) for task in tasks for where in _sample_ranges(task, size / n)]
    batches = [items[at : at + 64] for at in range(0, len(items), 64)]
    scores = sorted({t.score for t in targets})
    parts = yield Parallel(lambda batch: _sample(batch, scores), batches)
    for score in scores:
        sample = np.sort(np.concatenate([part[score] for part in parts]))[::-1]
        m = len(sample)
        for target in (t for t in targets if t.score == score):
            q = target.rank / n
            # six standard deviations of independent draws; spread runs do about as well
            slack = math.ceil(6 * math.sqrt(m * q * (1 - q))) + 16
            first, last = math.floor(q * m) - slack, math.ceil(q * m) + slack
            target.high = int(sample[first]) if first >= 0 else _TOP
            target.low = int(sample[last]) if last < m else 0
            if (min(last, m) - max(first, 0)) / m * n > _COLLECT:
                yield from _narrow(all_items, target)


def _sample(batch: list[tuple[TensorTask, Range]], scores: list[int]) -> dict[int, Any]:
    import numpy as np

    out: dict[int, list[Any]] = {score: [] for score in scores}
    for task, where in batch:
        found = task.scores(where)
        for i in scores:
            out[i].append(keys(found[i], where[0], task.keys.tensor, task.keys.tie[i]))
    return {i: np.concatenate(parts) for i, parts in out.items()}


def _pass(items: list[tuple[TensorTask, Range]], targets: list[_Target]) -> Work:
    """Count above and collect inside every bracket; pick the keys that are found."""
    import numpy as np

    def count(item: tuple[TensorTask, Range]) -> list[tuple[int, Any]]:
        scores = item[0].scores(item[1])
        return [_count(item[0], item[1][0], scores[t.score], t) for t in targets]

    parts = yield Parallel(count, items)
    for j, target in enumerate(targets):
        target.above = sum(part[j][0] for part in parts)
        inside = np.concatenate([part[j][1] for part in parts])
        place = target.rank - target.above
        if 0 < place <= len(inside):
            target.found = int(np.partition(inside, len(inside) - place)[len(inside) - place])


def _count(
    task: TensorTask, start: int, score: Tensor, target: _Target
) -> tuple[int, np.ndarray[Any, Any]]:
    import numpy as np

    stream = task.keys.tie[target.score]
    library = _compile.helpers()
    if library is None:
        all_keys = keys(score, start, task.keys.tensor, stream)
        low, high = np.uint64(target.low), np.uint64(target.high)
        inside = all_keys[(all_keys >= low) & (all_keys <= high)]
        return int((all_keys > high).sum()), inside
    score = score.contiguous()
    found = np.empty(score.numel(), dtype=np.uint64)
    taken = ctypes.c_int64()
    above = library.mw_bracket(
        ctypes.c_void_p(score.data_ptr()),
        ctypes.c_uint64(start),
        ctypes.c_int64(score.numel()),
        ctypes.c_uint32(task.keys.tensor & 0xFFFFFFFF),
        ctypes.c_uint32(stream & 0xFFFFFFFF),
        ctypes.c_uint64(target.low),
        ctypes.c_uint64(target.high),
        ctypes.c_void_p(found.ctypes.data),
        ctypes.byref(taken),
    )
    return above, found[: taken.value].copy()


def _narrow(items: list[tuple[TensorTask, Range]], target: _Target) -> Work:
    """Narrow a bracket by counting until few enough keys lie in it to be collected."""
    import numpy as np

    while True:
        width = (target.high - target.low) // _BINS + 1

        def histogram(item: tuple[TensorTask, Range], width: int = width) -> Any:
            task, where = item
            score = task.scores(where)[target.score]
            k = keys(score, where[0], task.keys.tensor, task.keys.tie[target.score])
            over = int((k > np.uint64(target.high)).sum())
            k = k[(k >= np.uint64(target.low)) & (k <= np.uint64(target.high))]
            bins = ((k - np.uint64(target.low)) // np.uint64(width)).astype(np.int64)
            return over, np.bincount(bins, minlength=_BINS)

        parts = yield Parallel(histogram, items)
        counts = sum(part[1] for part in parts)
        left = target.rank - sum(part[0] for part in parts)
        if left <= 0:  # the bracket lies below the wanted key
            target.low, target.high = target.high + 1, _TOP
            continue
        if left > counts.sum():  # it lies above
            target.low, target.high = 0, target.low - 1
            continue
        cumulated = np.cumsum(counts[::-1])
        chosen = _BINS - 1 - int(np.searchsorted(cumulated, left))
        target.low += chosen * width
        target.high = min(target.low + width - 1, target.high)
        if counts[chosen] <= _COLLECT or width == 1:
            return
