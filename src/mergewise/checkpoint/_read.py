"""Read ranges of tensors into the caller's memory, from any thread."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mergewise.checkpoint._change import ChangedRef
from mergewise.checkpoint._files import FileStamp, open_regular, stamp, where
from mergewise.checkpoint._hub import arrived
from mergewise.checkpoint._joined import JoinedRef
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed import PackedRef
from mergewise.errors import CheckpointError


@dataclass
class _Open:
    descriptor: int
    users: int = 0


class FileReader:
    """Range reads from a fixed set of files, with a bounded number of them open.

    No file is mapped, so resident memory does not grow with what was read. Safe to share between
    threads; use it as a context manager or call `close`.

    Args:
        files: what may be read, usually ``checkpoint.files`` of every input. A mapping to stamps
            (``checkpoint.stamps``) also notices a change between opening and reading, and
            downloads what is still on the Hub.
        max_open: descriptors kept open.

    Raises:
        CheckpointError: if a file is absent, or is not the one that was stamped.
    """

    def __init__(self, files: Iterable[Path] | Mapping[Path, FileStamp], max_open: int = 64):
        known = arrived(files) if isinstance(files, Mapping) else {}
        self._stamps = {path: known.get(path) or _stamp(path) for path in files}
        self._max_open = max(1, max_open)
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._lock = threading.Lock()
        self.verify_unchanged()

    def read_into(self, ref: TensorRef, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` of its data on.

        Raises:
            CheckpointError: if the file ends early, changed, or cannot be read.
            ValueError: if the range is not within the tensor.
        """
        if isinstance(ref, ChangedRef):
            raise CheckpointError(
                f"{ref.name}: an adapter changes this tensor, so it is computed and cannot be read "
                "as it lies in the file; what was asked for works on plain checkpoints only: merge "
                "the adapter into its base first (a recipe with `BASE+ADAPTER` as its only model)"
            )
        if isinstance(ref, PackedRef):
            raise CheckpointError(
                f"{ref.name}: this tensor is stored as {ref.stored_as}, so it is computed and "
                "cannot be read as it lies in the file; what was asked for works on plain "
                "checkpoints only: dequantise the model first (a recipe with it as its only model, "
                "merged with --dequantize)"
            )
        view = buffer.cast("B")
        if isinstance(ref, JoinedRef):
            for piece, first, part in ref.cut(start, view):
                self.read_into(piece, first, part)
            return
        if start < 0 or start + view.nbytes > ref.nbytes:
            raise ValueError(
                f"{ref.name}: bytes {start} to {start + view.nbytes} of {ref.nbytes} asked for"
            )
        with self._descriptor(ref.file) as descriptor:
            _fill(descriptor, ref.start + start, view, ref)

    def verify_unchanged(self) -> None:
        """Raise CheckpointError, naming the file, if any input is not as it was."""
        for path, before in self._stamps.items():
            if stamp(path) != before:
                raise _changed(path)

    def close(self) -> None:
        """Close all descriptors; only when no read is under way."""
        with self._lock:
            for entry in self._open.values():
                os.close(entry.descriptor)
            self._open.clear()

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        with self._lock:
            entry = self._open.get(path) or self._add(path)
            self._open.move_to_end(path)
            entry.users += 1
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.users -= 1

    def _add(self, path: Path) -> _Open:
        idle = [p for p, entry in self._open.items() if entry.users == 0]
        for old in idle[: max(0, len(self._open) + 1 - self._max_open)]:
            os.close(self._open.pop(old).descriptor)
        descriptor = open_regular(path)
        if FileStamp.of(os.fstat(descriptor)) != self._stamps.get(path):
            os.close(descriptor)
            raise _changed(path)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        entry = self._open[path] = _Open(descriptor)
        return entry


def _stamp(path: Path) -> FileStamp:
    found = stamp(path)
    if found is None:
        raise CheckpointError(f"{where(path)}: no such file; was it moved?")
    return found


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{where(path)}: the file changed or vanished while it was in use; "
        "leave the inputs alone during a merge, and run it again"
    )


def _fill(descriptor: int, offset: int, view: memoryview, ref: TensorRef) -> None:
    while view.nbytes:
        try:
            count = _read_some(descriptor, view, offset)
        except OSError as error:
            raise CheckpointError(f"{where(ref.file)}: cannot be read: {error}") from None
        if count == 0:
            raise CheckpointError(
                f"{where(ref.file)}: truncated while reading tensor {ref.name}: the file ends at "
                f"byte {offset:,}, expected {ref.end:,}; fetch it again"
            )
        view = view[count:]
        offset += count


def _read_some(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    data = os.pread(descriptor, view.nbytes, offset)
    view[: len(data)] = data
    return len(data)
