"""Inputs on the Hub that are fetched when first read and dropped after their last use.

For merges whose inputs do not fit on the disk. A file lies in the working folder while tensors that
are yet to be merged need it, and goes when the last of them is done; if the disk fills up before
that, the one that was not read for longest goes, to be fetched again. What the Hub's own cache
holds already is read there, and stays.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mergewise._units import show_bytes
from mergewise.checkpoint import (
    AwayStamp,
    FileReader,
    FileStamp,
    TensorRef,
    compared,
    drop,
    fetch,
)
from mergewise.errors import InterruptedMergeError, OutputError
from mergewise.plan import MergePlan, TensorPlan

_log = logging.getLogger("mergewise.hub")


class _Away:
    """A file, and whether it is here now.

    Attributes:
        left: tensors that are yet to be merged and need it; None if that is not known.
        users: reads in progress, and reads that wait for it to be fetched.
        turn: when it was last asked for.
    """

    def __init__(self, stamp: AwayStamp) -> None:
        self.stamp = stamp
        self.size = stamp.size
        self.lock = threading.Lock()
        self.place: Path | None = None
        self.descriptor = -1
        self.left: int | None = None
        self.users = 0
        self.turn = 0


class StreamedReader(FileReader):
    """Reads files here as `FileReader` does, and fetches and drops those that are not.

    Args:
        files: every input's files with their stamps.
        folder: where fetched files lie meanwhile; it is removed by `close`.
        uses: the files that each tensor of the output needs.
        stopped: whether the merge was given up; a download then ends soon.

    Attributes:
        fetched: bytes downloaded so far, those fetched again counted again.
        most: the most bytes of fetched files that lay here at once.
    """

    def __init__(
        self,
        files: Mapping[Path, FileStamp],
        folder: Path,
        uses: Mapping[str, frozenset[Path]],
        stopped: Callable[[], bool],
    ) -> None:
        self._away = {p: _Away(s) for p, s in files.items()
                      if isinstance(s, AwayStamp) and not p.exists()}  # fmt: skip
        super().__init__({p: s for p, s in files.items() if p not in self._away})
        self._folder = folder
        self._uses = {name: paths.intersection(self._away) for name, paths in uses.items()}
        self._stopped = stopped
        self._state = threading.Lock()
        self._clock = self._live = self.fetched = self.most = 0
        for paths in self._uses.values():
            for path in paths:
                self._away[path].left = (self._away[path].left or 0) + 1

    def finished(self, name: str) -> None:
        """A tensor of the output is complete: what only it needed goes."""
        for path in self._uses.pop(name, ()):
            each = self._away[path]
            with each.lock:
                with self._state:
                    each.left = (each.left or 1) - 1
                    unused = not each.left and not each.users
                if unused:
                    self._drop(each)

    def all_finished(self, names: Iterable[str]) -> None:
        """Tensors that an earlier run completed."""
        for name in names:
            self.finished(name)

    def order(self, names: Iterable[str]) -> list[str]:
        """The order in which the fewest files lie here at once, chosen step by step."""
        groups: dict[frozenset[Path], list[str]] = {}
        for name in names:
            groups.setdefault(self._uses.get(name, frozenset()), []).append(name)
        left = {p: each.left or 0 for p, each in self._away.items()}
        live = {p for p, each in self._away.items() if each.place is not None}
        found: list[str] = []
        while groups:
            best = min(groups, key=lambda paths: self._cost(paths, len(groups[paths]), live, left))
            for path in best:
                left[path] -= len(groups[best])
            live = {p for p in live | best if left[p] > 0}
            found += groups.pop(best)
        return found

    def _cost(
        self, paths: frozenset[Path], tensors: int, live: set[Path], left: Mapping[Path, int]
    ) -> tuple[int, int]:
        """Bytes to fetch for a group of tensors, and (negative) bytes that go after it."""
        come = sum(self._away[p].size for p in paths - live)
        gone = sum(self._away[p].size for p in paths if left[p] <= tensors)
        return come, -gone

    def close(self) -> None:
        super().close()
        for each in self._away.values():
            self._drop(each)
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        each = self._away.get(path)
        if each is None:
            with super()._descriptor(path) as descriptor:
                yield descriptor
            return
        with self._state:
            each.users += 1
            self._clock += 1
            each.turn = self._clock
        try:
            with each.lock:
                if each.place is None:
                    self._fetch(each)
            yield each.descriptor
        finally:
            with self._state:
                each.users -= 1

    def _fetch(self, each: _Away) -> None:
        """Download a file; its lock is held."""
        self._make_room(each)
        away = each.stamp.file
        _log.info("fetching %s of %s (%s)", away.file.name, away.repo.name, show_bytes(each.size))
        place = fetch(away, self._folder, self._count)
        compared(away.path, each.stamp, at=place)
        each.descriptor = os.open(place, os.O_RDONLY)
        with self._state:
            each.place = place
            self._live += each.size
            self.most = max(self.most, self._live)

    def _count(self, size: int) -> None:
        with self._state:
            self.fetched += size
        if self._stopped():
            raise InterruptedMergeError("interrupted")

    def _make_room(self, wanted: _Away) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        while (free := shutil.disk_usage(self._folder).free) < wanted.size:
            if not self._drop_oldest():
                name, need = wanted.stamp.file.file.name, show_bytes(wanted.size)
                raise OutputError(
                    f"{self._folder}: {name} needs {need} and {show_bytes(free)} are free; make "
                    "room, and run the same command again"
                )

    def _drop_oldest(self) -> bool:
        """Drop the file that was not read for longest; False if all are being read."""
        idle = [e for e in self._away.values() if e.place is not None and not e.users]
        for each in sorted(idle, key=lambda e: e.turn):
            if each.lock.acquire(blocking=False):
                try:
                    if each.place is not None and not each.users:
                        self._drop(each)
                        return True
                finally:
                    each.lock.release()
        return False

    def _drop(self, each: _Away) -> None:
        if each.place is None:
            return
        place, each.place = each.place, None
        os.close(each.descriptor)
        drop(place, self._folder)
        with self._state:
            self._live -= each.size


def uses(plan: MergePlan) -> dict[str, frozenset[Path]]:
    """The files that each tensor of the output is made of, through all stages."""
    return {name: _files(plan, tensor) for name, tensor in plan.output.tensors.items()}


def most_at_once(plan: MergePlan) -> int:
    """Bytes of the files on the Hub that one tensor needs, for the tensor that needs most."""
    stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
    sizes = {p: s.size for p, s in stamps.items() if isinstance(s, AwayStamp) and not p.exists()}
    return max((sum(sizes.get(p, 0) for p in paths) for paths in uses(plan).values()), default=0)


def _files(plan: MergePlan, tensor: TensorPlan) -> frozenset[Path]:
    found: set[Path] = set()
    for item in tensor.inputs:
        if item.view.checkpoint is not None:
            found |= set(_parts(item.view.checkpoint.tensors[item.meta.name]))
        elif item.view.stage is not None:
            found |= _files(plan, plan.stages[item.view.stage].tensors[item.meta.name])
    return frozenset(found)


def _parts(value: object) -> Iterator[Path]:
    """The files of a tensor, and of the tensors that it is computed from, whatever their kind."""
    if isinstance(value, TensorRef):
        yield value.file
    if isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
