"""Have files of the Hub here before work begins: room seen to, headers compared."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mergewise._units import show_bytes
from mergewise.checkpoint._files import FileStamp
from mergewise.checkpoint._hub import _client
from mergewise.checkpoint._hub._header import AwayStamp, compared
from mergewise.checkpoint._hub._repo import AwayFile, away
from mergewise.errors import HubError, OutputError

Report = Callable[[int, int], None]
"""Called with (bytes that have come, bytes to come in all), from any thread."""
_AT_ONCE = 4
_report: ContextVar[Report | None] = ContextVar("downloads", default=None)


class _StopError(HubError):
    """Ends a download that another thread gave up."""


@contextmanager
def downloads(report: Report | None) -> Iterator[None]:
    """Tell `report` of downloads while a ``with`` lasts."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def missing(stamps: Iterable[FileStamp]) -> list[AwayFile]:
    """The files that are yet to be downloaded, each once."""
    away = [s.file for s in stamps if isinstance(s, AwayStamp)]
    return list({file.path: file for file in away if not file.path.exists()}.values())


def arrived(stamps: Mapping[Path, FileStamp]) -> dict[Path, FileStamp]:
    """The state of every file, those on the Hub downloaded first.

    Raises:
        HubError: if one cannot be had, or is not what was planned with.
        OutputError: if the disk of the cache has no room for them.
    """
    download(missing(stamps.values()))
    return {
        path: compared(path, stamp) if isinstance(stamp, AwayStamp) else stamp
        for path, stamp in stamps.items()
    }


def here(path: Path) -> Path:
    """The path, its file downloaded if it is on the Hub; for what a header does not describe."""
    found = away(path)
    if found is not None:
        download([found])
    return path


def download(files: list[AwayFile]) -> None:
    """Download files into the Hub's cache; raises as `arrived`."""
    if not files:
        return
    total = sum(each.file.size for each in files)
    check_room(total, _client.cache_folder())
    count = _Count(total, _report.get())
    pool = ThreadPoolExecutor(_AT_ONCE, "mergewise-hub")
    try:
        jobs = [pool.submit(_get, each, count.add) for each in files]
        while wait(jobs, 0.2).not_done:  # in steps, so that Ctrl-C is heard
            if any(job.done() and job.exception() for job in jobs):
                break
        for job in jobs:
            if job.done():
                job.result()
        count.finish()
    finally:
        count.stop()
        pool.shutdown(cancel_futures=True)


def _get(each: AwayFile, count: Callable[[int], None]) -> None:
    _client.fetch(each.repo.name.repo, each.repo.commit, each.file, count=count)


def fetch(away: AwayFile, folder: Path, count: Callable[[int], None]) -> Path:
    """Download a file into a folder of ours, laid out like the cache; its path there."""
    repo = away.repo
    return _client.fetch(repo.name.repo, repo.commit, away.file, cache=folder, count=count)


def drop(place: Path, folder: Path) -> None:
    """Remove a file that `fetch` put into `folder`, with what it links to there."""
    path = place
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    if path.resolve().is_relative_to(folder.resolve()):
        path.unlink(missing_ok=True)


def check_room(need: int, folder: Path) -> None:
    """Raise OutputError if the disk of a folder, which may not be there yet, lacks room."""
    free = shutil.disk_usage(_nearest(folder)).free
    if need > free:
        raise OutputError(
            f"{folder}: {show_bytes(need)} are to be downloaded there and {show_bytes(free)} are "
            "free; make room, set HF_HOME to another disk, or merge with --stream-inputs"
        )


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether two folders, there or to be made, share a disk."""
    return _nearest(one).stat().st_dev == _nearest(other).stat().st_dev


def _nearest(folder: Path) -> Path:
    return next((p for p in (folder, *folder.parents) if p.exists()), folder)


class _Count:
    def __init__(self, total: int, report: Report | None) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._stopped = False
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        if self._stopped:
            raise _StopError("given up")
        with self._lock:
            self._done = max(0, min(self._done + size, self._total))
            if self._report:
                self._report(self._done, self._total)

    def finish(self) -> None:
        """All is here, whatever was counted: what another process fetched was not."""
        self.add(self._total)

    def stop(self) -> None:
        self._stopped = True
