"""Write output shards in place, block by block, and check finished ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from mergewise._lazy import torch
from mergewise.checkpoint import ShardLayout, cannot_write, create_shard, write_at
from mergewise.engine._schedule import Scheduler
from mergewise.engine._stages import Task, Tasks
from mergewise.engine._work import Parallel, Range, Work

if TYPE_CHECKING:
    from torch import Tensor

Advance = Callable[[int], None]


class ShardWriter:
    """Merges the tensors of one shard into its file.

    Args:
        folder: where the shard is written.
        advance: called with the number of bytes written.
    """

    def __init__(self, folder: Path, layout: ShardLayout, tasks: Tasks, advance: Advance) -> None:
        self._path = folder / layout.filename
        self._partial = folder / f"{layout.filename}.partial"
        self._layout = layout
        self._tasks = tasks
        self._advance = advance
        self._digests: dict[tuple[str, int], bytes] = {}
        self._file = -1

    def write(self, scheduler: Scheduler) -> str:
        """Write, flush and name the shard; returns its checksum.

        Raises:
            OutputError: if it cannot be written (no space, say).
        """
        try:
            self._partial.unlink(missing_ok=True)
            self._file = create_shard(self._partial, self._layout)
            try:
                scheduler.run(self._merge(name) for name in self._layout.offsets)
                os.fsync(self._file)
            finally:
                os.close(self._file)
            self._partial.replace(self._path)
        except OSError as error:
            raise cannot_write(self._partial, error) from None
        return self._checksum(self._digests)

    def intact(self, path: Path, checksum: str) -> bool:
        """Whether the finished shard at `path` still has the checksum it was recorded with."""
        if not path.is_file() or path.stat().st_size != self._layout.size:
            return False
        digests = {}
        with path.open("rb") as file:
            if file.read(len(self._layout.header)) != self._layout.header:
                return False
            for name, offset in self._layout.offsets.items():
                task = self._tasks.output(name)
                item = task.out_dtype.itemsize
                for start, size in task.ranges():
                    file.seek(offset + start * item)
                    digests[name, start] = xxhash.xxh3_128_digest(file.read(size * item))
        return self._checksum(digests) == checksum

    def _merge(self, name: str) -> Work:
        task = self._tasks.output(name)
        yield from task.prepare(self._tasks.thresholds(name))
        yield Parallel(lambda where: self._block(task, where), task.ranges())

    def _block(self, task: Task, where: Range) -> None:
        data = raw_bytes(task.merged(where))
        offset = self._layout.offsets[task.name] + where[0] * task.out_dtype.itemsize
        write_at(self._file, data, offset)
        self._digests[task.name, where[0]] = xxhash.xxh3_128_digest(data)
        self._advance(data.nbytes)

    def _checksum(self, digests: dict[tuple[str, int], bytes]) -> str:
        whole = xxhash.xxh3_128(self._layout.header)
        for key in sorted(digests):
            whole.update(digests[key])
        return whole.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """A flat tensor's bytes without a copy."""
    data: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(data)
