"""How much of each tensor one threshold over the whole model would keep.

Guides make layer densities of it: a tensor whose task vector has much that matters keeps much.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergewise.checkpoint import FileReader
from mergewise.constants import FUSE_FROM_ELEMENTS
from mergewise.engine import _compile
from mergewise.engine._block import Threshold
from mergewise.engine._device import explained_memory, processors
from mergewise.engine._schedule import Scheduler
from mergewise.engine._select import count_kept, select
from mergewise.engine._stages import Tasks
from mergewise.engine._task import Options, TensorTask
from mergewise.engine._threads import one_torch_thread
from mergewise.engine._work import Parallel, Range, Work
from mergewise.errors import EvidenceError, MergewiseError
from mergewise.evidence import Evidence
from mergewise.methods import (
    SCORES,
    Inputs,
    Method,
    Need,
    Settings,
    element_score,
    get_method,
    kept_count,
    score_needs,
)
from mergewise.plan import Input, MergePlan, TensorPlan, find_statistics

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
Files = Mapping[str, Sequence[Evidence]]


class _Ranking(Method):
    """Scores of one expert's task vector, the one at `place` among those given."""

    name = "ranking"

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return score_needs(p.score)

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [element_score(x, s, s.place, x.deltas[s.place])]

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[kept_count(p.density, n)]]

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        raise NotImplementedError


def kept_shares(
    plan: MergePlan,
    score: str,
    density: float,
    *,
    only: Collection[str] | None = None,
    evidence: Files | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """The share of each tensor that lies at or above one threshold over the whole model.

    For every expert the threshold is the one that `density` of all elements reach, as
    ``granularity: model`` has it. Exact: nothing is sampled or put into bins but on the way to the
    threshold, and of equal scores just as many are counted as reach the density. Tensors are read
    block by block, about twice for each expert.

    Args:
        plan: of a recipe with a base and one list of models; what its method is does not matter.
        score: a rule of `SCORES`, such as ``fisher``; the gains see all experts of a tensor.
        density: share of all elements to keep, 0 to 1.
        only: names of the tensors to look at; by default all that are merged.
        evidence: files by model, as the recipe calls it; of models that are not named here, the
            recipe's own.
        progress: called with (elements looked at, their estimated number), from any thread.

    Returns:
        For each expert in the recipe's order: shares by tensor, of those that the evidence
        describes. Weighted by elements, their mean is the density.

    Raises:
        MergewiseError: if there is no such rule, no base, or no list of models.
        EvidenceError: if an expert's evidence does not fit, or describes none of the tensors.
        NonFiniteError: if a tensor holds NaN or infinity.
        InterruptedMergeError: on Ctrl-C.
    """
    _check(plan, score, density)
    files = _files(plan, evidence or {})
    pools = [_described(plan, label, score, only, files) for label in files]
    stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
    stamps |= {one.path: one.stamp for known in files.values() for one in known}
    compiled = plan.elements >= FUSE_FROM_ELEMENTS and _compile.helpers() is not None
    scheduler = Scheduler(processors())
    tell = _Told(progress, 2 * sum(t.meta.elements for pool in pools for t in pool))
    with FileReader(stamps) as reader, one_torch_thread(), explained_memory("cpu"):
        tasks = Tasks(plan, reader, Options(fuse=compiled))
        tasks.look_ahead(scheduler, plan.output.index)
        found = [
            scheduler.run_one(_shares(tasks, plan.output.index, _at(pool, density), tell))
            for pool in pools
        ]
        reader.verify_unchanged()
    return found


def _check(plan: MergePlan, score: str, density: float) -> None:
    stage = plan.recipe.output
    if score not in SCORES:
        raise MergewiseError(f"no score {score!r}; expected one of {', '.join(SCORES)}")
    if not 0 <= density <= 1:
        raise MergewiseError(f"density: 0 <= x <= 1 expected, got {density:g}")
    if stage.base_model is None or get_method(stage.method).base == "ignored":
        raise MergewiseError(
            f"{score} ranks changes from a base model, and {stage.method} has none; name a "
            "`base_model`, and a method that uses it, such as task_arithmetic or ties"
        )
    if len(stage.modules) > 1 or len(stage.modules[0].slices) > 1:
        raise MergewiseError(
            "shares over the whole model are for recipes with one list of `models`, not `slices`"
        )


def _files(plan: MergePlan, given: Files) -> dict[str, Sequence[Evidence]]:
    """Every expert's evidence, by what the recipe calls it."""
    [slice_] = plan.recipe.output.modules[0].slices
    experts = [s for s in slice_.sources if s.model != plan.recipe.output.base_model]
    return {
        str(s.model): given.get(str(s.model)) or [plan.evidence[text] for text in s.evidence]
        for s in experts
    }


def _described(
    plan: MergePlan, label: str, score: str, only: Collection[str] | None, files: Files
) -> list[TensorPlan]:
    """An expert's tensors that are merged and that the evidence describes, to be ranked."""
    merged = [t for t in plan.output.tensors.values() if t.fate == "merge" and t.meta.elements]
    chosen = [t for t in merged if only is None or t.meta.name in only]
    having = [t for t in chosen if any(i.view.label == label for i in t.experts)]
    found = [_ranked(tensor, label, score, files) for tensor in having]
    described = [tensor for tensor in found if tensor is not None]
    if described:
        return described
    wanted = ", ".join(need.statistic for need in score_needs(score))
    hint = f"collect it: mergewise collect {wanted} {label} --data DATA -o FILE"
    raise EvidenceError(
        f"{label}: none of {len(having)} tensors has what score: {score} reads"
        + (f" ({wanted}); {hint}" if wanted else "")
    )


def _ranked(tensor: TensorPlan, label: str, score: str, files: Files) -> TensorPlan | None:
    """A tensor with the experts that its score looks at; None if it is not described."""
    experts: Sequence[Input] = tensor.experts
    place = next(i for i, item in enumerate(experts) if item.view.label == label)
    if "gain" not in score:
        experts, place = experts[place : place + 1], 0
    needs = score_needs(score)
    if needs and any(item.rows for item in experts):
        return None  # what was collected is about other rows
    names = [item.meta.name for item in experts]
    own = [files[item.view.label] for item in experts]
    known = find_statistics(needs, names, tensor.meta.shape, own)
    if needs and not known.statistics:
        return None
    values = {"score": score, "place": place}
    return replace(
        tensor,
        experts=tuple(experts),
        values=values,
        statistics=known.statistics,
        turned=known.turned,
    )


def _at(pool: Sequence[TensorPlan], density: float) -> list[TensorPlan]:
    return [replace(t, values={**t.values, "density": density}) for t in pool]


def _shares(tasks: Tasks, stage: int, pool: Sequence[TensorPlan], tell: _Told) -> Work:
    """The shares of one expert. A generator (see `_task`)."""
    made = [tasks.make(stage, tensor, _Ranking()) for tensor in pool]
    ranked = [task for task in made if isinstance(task, TensorTask)]
    for task in ranked:
        yield from task.prepare_inputs()
    [[threshold]] = yield from tell.of(select(ranked))
    items = [(task, where) for task in ranked for where in task.ranges()]
    counts = yield from tell.of(_counts(items, threshold))
    kept = dict.fromkeys((task.name for task in ranked), 0)
    for (task, _), count in zip(items, counts, strict=True):
        kept[task.name] += count
    return {task.name: kept[task.name] / task.size for task in ranked}


def _counts(items: Sequence[tuple[TensorTask, Range]], threshold: Threshold) -> Work:
    return (yield Parallel(lambda item: count_kept(item[0], item[1], 0, threshold), items))


class _Told:
    """Reports how many elements have been looked at."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def of(self, work: Work) -> Work:
        """The same work; its blocks are told of as they are done."""
        answers: list[Any] | None = None
        while True:
            try:
                request = work.send(answers)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            answers = yield Parallel(self._telling(request.function), request.items)

    def _telling(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def told(item: Any) -> Any:
            found = function(item)
            if isinstance(item, tuple):  # a block; a sample is a list of them
                self._add(item[1][1])
            return found

        return told

    def _add(self, elements: int) -> None:
        with self._lock:
            self._done = min(self._total, self._done + elements)
            if self._progress is not None:
                self._progress(self._done, self._total)
