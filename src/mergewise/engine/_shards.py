"""Write output shards in place, block by block, and check finished ones."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import xxhash

from mergewise._lazy import torch
from mergewise.checkpoint import ShardLayout, cannot_write, create_shard, write_at
from mergewise.engine._journal import COMPLETE, PARTIAL
from mergewise.engine._schedule import Scheduler
from mergewise.engine._stages import Task, Tasks
from mergewise.engine._work import Parallel, Range, Work

if TYPE_CHECKING:
    from torch import Tensor

Advance = Callable[[int], None]


class Turns(Protocol):
    """Who cares in which order tensors are merged."""

    def order(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which they are to be merged."""

    def finished(self, name: str) -> None:
        """A tensor is complete, now or since an earlier run."""


class ShardWriter:
    """Merges the tensors of one shard into its file.

    Beside the unfinished file lies a list of the tensors that are complete in it, with their
    checksums. A later run verifies them and merges only the others.

    Args:
        folder: where the shard is written.
        advance: called with the number of bytes written, or found written.
        turns: in which order tensors are merged, and who is told that one is complete.
    """

    def __init__(
        self,
        folder: Path,
        layout: ShardLayout,
        tasks: Tasks,
        advance: Advance,
        turns: Turns | None = None,
    ) -> None:
        self._path = folder / layout.filename
        self._partial = folder / f"{layout.filename}{PARTIAL}"
        self._list = folder / f"{layout.filename}{COMPLETE}"
        self._layout = layout
        self._tasks = tasks
        self._advance = advance
        self._turns = turns
        self._digests: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()
        self._file = -1

    def write(self, scheduler: Scheduler) -> str:
        """Write, flush and name the shard; returns its checksum.

        Raises:
            OutputError: if it cannot be written (no space, say).
        """
        try:
            complete = self._found()
            if complete:
                self._file = os.open(self._partial, os.O_RDWR)
            else:
                self._partial.unlink(missing_ok=True)
                self._list.unlink(missing_ok=True)
                self._file = create_shard(self._partial, self._layout)
            try:
                missing = [name for name in self._layout.offsets if name not in complete]
                if self._turns is not None:
                    for name in complete:
                        self._turns.finished(name)
                    missing = self._turns.order(missing)
                scheduler.run(self._merge(name) for name in missing)
                os.fsync(self._file)
            finally:
                os.close(self._file)
            self._partial.replace(self._path)
            self._list.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._partial, error) from None
        return self._checksum(self._digests)

    def intact(self, path: Path, checksum: str) -> bool:
        """Whether the finished shard at `path` still has the checksum it was recorded with."""
        digests: dict[tuple[str, int], bytes] = {}
        for name in self._layout.offsets if self._fits(path) else ():
            digests |= self._read(path, name)
        return self._checksum(digests) == checksum

    def _fits(self, path: Path) -> bool:
        """Whether a file has this shard's size and header."""
        if not path.is_file() or path.is_symlink() or path.stat().st_size != self._layout.size:
            return False
        with path.open("rb") as file:
            return file.read(len(self._layout.header)) == self._layout.header

    def _read(self, path: Path, name: str) -> dict[tuple[str, int], bytes]:
        """Digests of a tensor's blocks as they stand in a file."""
        task = self._tasks.output(name)
        item = task.out_dtype.itemsize
        digests = {}
        with path.open("rb") as file:
            for start, size in task.ranges():
                file.seek(self._layout.offsets[name] + start * item)
                digests[name, start] = xxhash.xxh3_128_digest(file.read(size * item))
        return digests

    def _found(self) -> set[str]:
        """Tensors that an earlier run left complete in the unfinished file; their digests are
        taken over."""
        if not self._fits(self._partial) or not self._list.is_file():
            return set()
        complete = set()
        for line in self._list.read_text("utf-8", "replace").splitlines():
            try:
                name, recorded = json.loads(line)
            except (ValueError, TypeError):
                continue  # cut off when the run was killed
            if not isinstance(name, str) or name in complete or name not in self._layout.offsets:
                continue
            digests = self._read(self._partial, name)
            if _joined(digests) == recorded:
                self._digests |= digests
                complete.add(name)
                self._advance(self._layout.sizes[name])
        return complete

    def _merge(self, name: str) -> Work:
        task = self._tasks.output(name)
        yield from task.prepare(self._tasks.shared(name))
        blocks = yield Parallel(lambda where: self._block(task, where), task.ranges())
        digests = {(name, where[0]): d for where, d in zip(task.ranges(), blocks, strict=True)}
        with self._lock:
            self._digests |= digests
            with self._list.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, _joined(digests)]) + "\n")
        if self._turns is not None:
            self._turns.finished(name)

    def _block(self, task: Task, where: Range) -> bytes:
        data = raw_bytes(task.merged(where))
        offset = self._layout.offsets[task.name] + where[0] * task.out_dtype.itemsize
        write_at(self._file, data, offset)
        self._advance(data.nbytes)
        return xxhash.xxh3_128_digest(data)

    def _checksum(self, digests: dict[tuple[str, int], bytes]) -> str:
        whole = xxhash.xxh3_128(self._layout.header)
        for key in sorted(digests):
            whole.update(digests[key])
        return whole.hexdigest()


def _joined(digests: dict[tuple[str, int], bytes]) -> str:
    """One checksum of a tensor's blocks."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests[key] for key in sorted(digests)))


def raw_bytes(tensor: Tensor) -> memoryview:
    """A flat tensor's bytes without a copy."""
    data: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(data)
