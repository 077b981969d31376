"""The record of an unfinished merge: which plan it follows and which shards are done.

While a merge runs, everything lies in ``OUT/.mergewise/``: a lock, the journal, shards under their
final names once they are complete and flushed, and an unfinished shard with the list of tensors
that are complete in it. What OUT itself held before stays as it was
until publication, which moves the files and writes ``config.json`` last: a folder without it is
visibly unfinished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mergewise.checkpoint import placed, write_file
from mergewise.errors import OutputError

WORK = ".mergewise"
PARTIAL, COMPLETE = ".partial", ".complete"
"""Endings: of an unfinished shard, and of the list of tensors that are complete in it."""
_FINISHED = ".mergewise-finished"
_MARK = "publishing"
_FORMAT = 1


def check_out(out: Path, overwrite: bool) -> None:
    """See that a folder may be merged into, before other long work.

    Raises:
        OutputError: if it holds something else, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder for the output")
    folder = out / WORK
    if folder.is_symlink():
        raise OutputError(f"{folder}: is a link, where a folder was expected; remove it")
    held = []
    try:
        held = sorted(p.name for p in out.iterdir() if p.name not in (WORK, _FINISHED))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unusable(out, error) from None
    if held and not overwrite and not (folder / _MARK).exists():
        raise OutputError(
            f"{out}: is not empty ({', '.join(held[:3])}"
            f"{', …' if len(held) > 3 else ''}); choose another folder, or pass --overwrite"
        )


def _unusable(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{out}: cannot be written to ({error.strerror}); choose another output folder"
    )


class Workspace:
    """The working folder of one merge, locked against a second one.

    Args:
        out: the output folder; created if absent.
        identity: what the unfinished bytes depend on; shards of another identity are refused.
        overwrite: allow an `out` that holds files already.
        restart: discard an unfinished merge found there.

    Attributes:
        resumed: whether an unfinished merge is continued.

    Raises:
        OutputError: if the folder cannot be used, with the next step.
    """

    def __init__(
        self, out: Path, identity: dict[str, Any], *, overwrite: bool, restart: bool
    ) -> None:
        self.out = out
        self.folder = out / WORK
        self._identity = {"format": _FORMAT, **identity}
        self._check(overwrite)
        self._made = not out.exists()
        self.resumed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unusable(error) from None
        self._take_lock()
        try:
            self._check(overwrite)  # the merge that held the lock before may have filled it
            self.done: dict[str, str] = self._resume(restart)
        except OSError as error:
            self.release()
            raise self._unusable(error) from None
        except BaseException:
            self.release()
            raise

    def _unusable(self, error: OSError) -> OutputError:
        return _unusable(self.out, error)

    def _check(self, overwrite: bool) -> None:
        # what a killed run left of its own goes, even if the rest is then refused
        shutil.rmtree(self.out / _FINISHED, ignore_errors=True)
        check_out(self.out, overwrite)

    @property
    def _publishing(self) -> bool:
        return (self.folder / _MARK).exists()

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no advisory locks on this system
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one who held it may have finished just now, and removed it
            if not os.path.samestat(os.fstat(self._lock), (self.folder / "lock").stat()):
                raise BlockingIOError
        except OSError:
            os.close(self._lock)
            raise OutputError(
                f"{self.out}: another merge is writing there; wait for it, or choose another folder"
            ) from None

    def _resume(self, restart: bool) -> dict[str, str]:
        path = self.folder / "journal.json"
        if restart:
            self._clear()
        if not path.exists():
            self._clear()
            self._write({})
            return {}
        try:
            found = json.loads(path.read_text())
            done = dict(found.pop("done"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._refuse("its journal cannot be read") from None
        if found != json.loads(json.dumps(self._identity)):
            raise self._refuse("it followed another recipe, other inputs or other options")
        unfinished = {p.name for p in self.folder.iterdir() if p.suffix in (PARTIAL, COMPLETE)}
        self._clear(keep={path.name, *done, *unfinished})
        self.resumed = True
        return done

    def _refuse(self, reason: str) -> OutputError:
        return OutputError(
            f"{self.out}: holds an unfinished merge that cannot be continued: {reason}; "
            "pass --restart to discard it, or choose another folder"
        )

    def _clear(self, keep: set[str] | frozenset[str] = frozenset()) -> None:
        """Delete what an earlier run left, but for `keep`.

        The mark of a begun publication stays even on a restart: what OUT held before is gone.
        """
        for path in self.folder.iterdir():
            if path.name in {"lock", _MARK, *keep}:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _write(self, done: dict[str, str]) -> None:
        text = json.dumps({**self._identity, "done": done}, indent=1)
        write_file(self.folder / "journal.json", text.encode())

    def finished(self, filename: str, checksum: str) -> None:
        """Note a shard that lies complete and flushed in the working folder."""
        self.done[filename] = checksum
        self._write(self.done)

    def locate(self, filename: str) -> Path:
        """Where a finished shard lies: here or, if publication was interrupted, in OUT."""
        here = self.folder / filename
        return self.out / placed(filename) if self._publishing and not here.exists() else here

    def begin_publishing(self) -> None:
        """From here on the old content of OUT goes; a later run must finish, not refuse."""
        write_file(self.folder / _MARK, b"")

    def release(self) -> None:
        """Give up the lock; what is unfinished stays for the next run."""
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def remove(self) -> None:
        """Everything is published, or nothing is worth keeping: the working folder goes.

        It is renamed first: a run killed in between finds all of it, or none.
        """
        finished = self.out / _FINISHED
        with contextlib.suppress(OSError):
            self.folder.replace(finished)
        shutil.rmtree(finished, ignore_errors=True)
        self.release()

    @property
    def tensors_done(self) -> int:
        """How many tensors are complete in an unfinished shard."""
        return complete_tensors(self.out)

    def abandon(self, *, unfinished: bool = False) -> None:
        """Keep what the next run can use; if that is nothing, leave OUT as it was found.

        Args:
            unfinished: an unfinished shard counts as of use.
        """
        if self.done or self._publishing or (unfinished and self.tensors_done):
            self.release()
            return
        self.remove()
        if self._made:
            with contextlib.suppress(OSError):
                self.out.rmdir()


def complete_tensors(out: Path) -> int:
    """How many tensors an unfinished merge into `out` has complete in its unfinished shard."""
    lists = (out / WORK).glob(f"*{COMPLETE}")
    return sum(len(path.read_bytes().splitlines()) for path in lists)
