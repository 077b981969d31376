"""A plan's tensors as tasks; a stage's result can be the input of the next without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES, FileReader
from mergewise.engine._block import Shared
from mergewise.engine._copy import CopyTask
from mergewise.engine._evidence import WHOLE, MeanSource, spread
from mergewise.engine._model import whole_model
from mergewise.engine._pool import PoolTask
from mergewise.engine._rows import RowsSource
from mergewise.engine._schedule import Scheduler
from mergewise.engine._sources import FileSource, Source, cast, file_source
from mergewise.engine._task import Options, TensorTask
from mergewise.engine._work import Parallel, Range, Work
from mergewise.methods import Access, Method, Need, Settings, get_method
from mergewise.plan import Input, MergePlan, StagePlan, Statistic, TensorPlan

if TYPE_CHECKING:
    from torch import Tensor

Task = TensorTask | CopyTask | PoolTask


def torch_dtype(code: str) -> torch.dtype:
    """The torch type of a safetensors code."""
    found: torch.dtype = getattr(torch, TORCH_NAMES[code])
    return found


class StageSource:
    """A tensor of an earlier stage, computed block by block as it is read."""

    def __init__(self, label: str, task: Task, shared: Shared | None) -> None:
        self.model = label
        self.name = task.name
        self.shape = task.shape
        self.dtype = task.out_dtype
        self._task = task
        self._shared = shared
        self._whole: Tensor | None = None

    def prepare(self) -> Work:
        yield from self._task.prepare(self._shared)
        whole = self._task.access is Access.WHOLE or self._task.matrix
        if whole and self._task.size and self._whole is None:
            self._whole = torch.cat((yield Parallel(self._merged, self._task.ranges())))

    def read(self, start: int, size: int, slot: int) -> Tensor:
        if self._whole is not None:
            return self._whole[start : start + size]
        columns = 1 if self._task.access is Access.FLAT else self._task.columns
        first = start // columns * columns
        last = min(-(-(start + size) // columns) * columns, self._task.size)
        return self._merged((first, last - first))[start - first : start - first + size]

    def _merged(self, where: Range) -> Tensor:
        # what a task gives may lie in a buffer that reading another input reuses
        return self._task.merged(where).clone()


class Tasks:
    """Makes the tasks of a plan.

    Args:
        reader: open files of every checkpoint.
        options: what holds for the whole run.
    """

    def __init__(self, plan: MergePlan, reader: FileReader, options: Options) -> None:
        self._plan = plan
        self._reader = reader
        self._options = options
        self._shared: list[Mapping[str, Shared]] = []

    def check_evidence(self, scheduler: Scheduler) -> None:
        """Read what methods will read element by element beside the weights.

        Raises:
            EvidenceError: naming file, tensor and statistic, for numbers that cannot be.
        """
        found: dict[tuple[Path, str], MeanSource] = {}
        for stage in self._plan.stages:
            method = get_method(stage.stage.method)
            for tensor in stage.tensors.values():
                needs = method.needs(Settings(tensor.values)) if tensor.statistics else ()
                for need, known in zip(needs, tensor.statistics, strict=True):
                    if need.per not in WHOLE:
                        means = self._means(stage.index, known, need)
                        keys = [(one.file, one.ref.name) for one in known]
                        found |= zip(keys, means, strict=True)
        scheduler.run(mean.look() for mean in found.values())

    def look_ahead(self, scheduler: Scheduler, stages: int | None = None) -> None:
        """What methods want to know of whole models, stage by stage; of the first `stages`."""
        for stage in self._plan.stages[:stages]:
            tasks = [
                self.make(stage.index, t)
                for t in stage.tensors.values()
                if t.fate == "merge" and _looks_ahead(stage, t)
            ]
            merges = [t for t in tasks if isinstance(t, TensorTask)]
            self._shared.append(scheduler.run_one(whole_model(merges)))

    def recorded(self) -> list[dict[str, float]]:
        """What the last stage's method has kept of its sums over the whole model.

        One entry for each set of models and numbers, usually one.
        """
        stage = self._plan.output
        method = get_method(stage.stage.method)
        found = []
        for name, known in self._shared[-1].items():
            settings = Settings(stage.tensors[name].values)
            if known.totals and method.pooled(settings):
                found.append(method.recorded(known.totals, settings))
        return [one for i, one in enumerate(found) if one and one not in found[:i]]

    def shared(self, tensor: str) -> Shared | None:
        """What was found over the whole model for a tensor of the last stage."""
        return self._shared[-1].get(tensor)

    def output(self, name: str) -> Task:
        """A fresh task for one tensor of the result."""
        last = self._plan.output
        return self.make(last.index, last.tensors[name])

    def make(self, stage: int, tensor: TensorPlan, method: Method | None = None) -> Task:
        """The task of one tensor of a stage; `method` if not by the method of that stage."""
        sources = [self._source(stage, item) for item in tensor.inputs]
        dtype = torch_dtype(tensor.meta.dtype)
        document = self._plan.stages[stage].stage
        options = replace(self._options, seed=document.seed or 0)
        if tensor.fate == "copy":
            return CopyTask(tensor.meta.name, tensor.meta.shape, sources[0], dtype, options)
        if tensor.fate == "pool":
            means = [self._source(stage, item) for item in tensor.means]
            weights = tensor.values["weight"]
            return PoolTask(
                tensor.meta.name, tensor.meta.shape, sources, weights, means, dtype, options
            )
        if tensor.in_dtype:
            wanted = torch_dtype(tensor.in_dtype)
            sources = [cast(source, wanted) for source in sources]
        has_base = tensor.base is not None
        method = method or get_method(document.method)
        return TensorTask(
            name=tensor.meta.name,
            shape=tensor.meta.shape,
            method=method,
            values=tensor.values,
            base=sources[0] if has_base else None,
            experts=sources[has_base:],
            out_dtype=dtype,
            options=options,
            evidence=self._evidence(stage, tensor, method),
            turned=tensor.turned,
        )

    def _evidence(self, stage: int, tensor: TensorPlan, method: Method) -> list[list[Source]]:
        if not tensor.statistics:
            return []
        needs = method.needs(Settings(tensor.values))
        return [
            spread(need, self._means(stage, each, need), tensor.meta.shape, tensor.turned)
            for need, each in zip(needs, tensor.statistics, strict=True)
        ]

    def _means(self, stage: int, statistics: Sequence[Statistic], need: Need) -> list[MeanSource]:
        files = [
            FileSource(f"evidence {known.file}", known.ref, self._reader, stage)
            for known in statistics
        ]
        return [
            MeanSource(file, known.count, need.positive)
            for file, known in zip(files, statistics, strict=True)
        ]

    def _source(self, stage: int, item: Input) -> Source:
        if item.rows is None:
            return self._as_stored(stage, item)
        donors = {n: self._as_stored(stage, donor) for n, donor in item.rows.donors.items()}
        own = self._as_stored(stage, item)
        return RowsSource(own, donors, item.rows.map, item.rows.axis, stage)

    def _as_stored(self, stage: int, item: Input) -> Source:
        view = item.view
        if view.checkpoint is not None:
            ref = view.checkpoint.tensors[item.meta.name]
            return file_source(view.label, ref, self._reader, stage, self._options.fuse)
        assert view.stage is not None
        inner = self.make(view.stage, self._plan.stages[view.stage].tensors[item.meta.name])
        return StageSource(view.label, inner, self._shared[view.stage].get(item.meta.name))


def _looks_ahead(stage: StagePlan, tensor: TensorPlan) -> bool:
    if tensor.values.get("granularity") == "model":
        return True
    return get_method(stage.stage.method).pooled(Settings(tensor.values))
