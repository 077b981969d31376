"""Single tensors of a planned merge, whole and in memory."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from mergewise._device import pick_device
from mergewise._lazy import torch
from mergewise.checkpoint import FileReader
from mergewise.constants import FUSE_FROM_ELEMENTS
from mergewise.engine import _compile
from mergewise.engine._budget import choose_workers
from mergewise.engine._device import explained_memory
from mergewise.engine._schedule import Scheduler
from mergewise.engine._stages import Task, Tasks
from mergewise.engine._task import Options
from mergewise.engine._threads import one_torch_thread
from mergewise.engine._work import Parallel, Range, Work
from mergewise.plan import MergePlan

if TYPE_CHECKING:
    from torch import Tensor


class ResultTensors:
    """Computes tensors of a merge one by one, as the merge would write them.

    To be used as a context manager.

    Args:
        device, workers, memory: as `merge` takes them; memory in bytes.

    Raises:
        MergewiseError: as `merge` raises.
    """

    def __init__(
        self,
        plan: MergePlan,
        *,
        device: str = "auto",
        workers: int | None = None,
        memory: int | None = None,
        check: bool = True,
    ) -> None:
        self._plan = plan
        self._device = pick_device(device)
        self._scheduler = Scheduler(choose_workers(plan, workers, memory))
        self._check = check
        self._stack = ExitStack()
        self._tasks: Tasks | None = None

    def read(self, name: str) -> Tensor:
        """One tensor, in the type that the plan gives it."""
        assert self._tasks is not None, "not entered"
        task = self._tasks.output(name)
        out = torch.empty(task.shape, dtype=task.out_dtype)
        self._scheduler.run([self._fill(task, out)])
        return out

    def _fill(self, task: Task, out: Tensor) -> Work:
        assert self._tasks is not None
        yield from task.prepare(self._tasks.shared(task.name))
        flat = out.view(-1)

        def write(where: Range) -> None:
            flat[where[0] : where[0] + where[1]] = task.merged(where)

        yield Parallel(write, task.ranges())

    def __enter__(self) -> ResultTensors:
        plan = self._plan
        stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
        stamps |= {known.path: known.stamp for known in plan.evidence.values()}
        fuse = (
            plan.elements >= FUSE_FROM_ELEMENTS
            and self._device == "cpu"
            and _compile.helpers() is not None
        )
        with ExitStack() as stack:
            reader = stack.enter_context(FileReader(stamps))
            stack.enter_context(one_torch_thread())
            stack.enter_context(explained_memory(self._device))
            options = Options(device=self._device, fuse=fuse, check=self._check)
            self._tasks = Tasks(plan, reader, options)
            self._tasks.check_evidence(self._scheduler)
            self._tasks.look_ahead(self._scheduler)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
