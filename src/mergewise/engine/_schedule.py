"""Run many pieces of work on several threads.

Each piece is a generator of `Parallel` requests. Its items are dealt to the workers; whoever
finishes the last one resumes the generator. A new piece is begun only when no item is waiting, so
few are open at a time and memory stays bounded. The first error stops everything.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from mergewise._stopping import stopped_by
from mergewise.engine._work import Parallel, Work
from mergewise.errors import InterruptedMergeError


class _Open:
    """A generator that waits for the answers to its latest request."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answers: list[Any] = []
        self.left = 0


class Scheduler:
    """Runs pieces of work on `workers` threads.

    Args:
        workers: number of threads; 1 runs in the calling thread.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = max(1, workers)
        self._lock = threading.Condition()
        self._items: deque[tuple[_Open, int, Parallel]] = deque()
        self._pending: Iterator[Work] = iter(())
        self._open = 0
        self._error: BaseException | None = None
        self._turn = 0

    def run(self, pieces: Iterable[Work]) -> None:
        """Run all pieces to their end.

        Raises:
            InterruptedMergeError: on Ctrl-C; blocks in progress are finished first.
            Exception: the first error of any piece.
        """
        self._pending = iter(pieces)
        self._items.clear()
        self._open = 0
        self._error = None
        if self.workers == 1:
            self._loop(self._turn)
        else:
            self._run_threads()
        with self._lock:
            self._turn += 1
            error, self._error = self._error, None
        if error is not None:
            raise error

    def run_one(self, work: Work) -> Any:
        """Run one piece and return its value."""
        value: list[Any] = []

        def keep() -> Work:
            value.append((yield from work))

        self.run([keep()])
        return value[0]

    @property
    def stopped(self) -> bool:
        """Whether a run is being given up."""
        return self._error is not None

    def stop(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._lock.notify_all()

    def _run_threads(self) -> None:
        ended = [threading.Event() for _ in range(self.workers)]
        threads = [
            threading.Thread(target=self._work, args=(self._turn, event), name=f"mergewise-{i}")
            for i, event in enumerate(ended)
        ]
        try:
            for thread in threads:
                thread.start()
        except KeyboardInterrupt:
            self.stop(InterruptedMergeError("interrupted"))
        begun = zip(threads, ended, strict=True)
        waited = [event for thread, event in begun if thread.ident is not None]
        while not self._ended(waited):
            pass

    def _ended(self, workers: list[threading.Event]) -> bool:
        """Wait for the workers; False if Ctrl-C cut that short.

        However often it is pressed, nobody goes on before they have finished their blocks.
        `Thread.join` cannot be asked: up to Python 3.12, one that Ctrl-C cuts short marks a thread
        that still runs as ended, and Python then aborts at exit.
        """
        try:
            for event in workers:
                while not event.wait(0.2):
                    pass
        except KeyboardInterrupt:
            self.stop(InterruptedMergeError("interrupted"))
            return False
        return True

    def _work(self, turn: int, ended: threading.Event) -> None:
        try:
            self._loop(turn)
        finally:
            ended.set()

    def _loop(self, turn: int) -> None:
        try:
            with stopped_by(lambda: self._error is not None):
                while (item := self._next(turn)) is not None:
                    self._perform(*item)
        except KeyboardInterrupt:
            self.stop(InterruptedMergeError("interrupted"))
        except BaseException as error:  # handed to the caller of run()
            self.stop(error)

    def _next(self, turn: int) -> tuple[_Open, int, Parallel] | None:
        """An item to do; begins a new piece if none waits. None when all is done or stopped.

        A thread that Ctrl-C overtook while it was being started may come here when its run
        is over.
        """
        while True:
            with self._lock:
                while True:
                    if self._error is not None or turn != self._turn:
                        return None
                    if self._items:
                        return self._items.popleft()
                    work = next(self._pending, None)
                    if work is not None:
                        self._open += 1
                        break
                    if not self._open:
                        self._lock.notify_all()
                        return None
                    self._lock.wait()
            self._advance(_Open(work), None)

    def _perform(self, piece: _Open, index: int, request: Parallel) -> None:
        answer = request.function(request.items[index])
        with self._lock:
            piece.answers[index] = answer
            piece.left -= 1
            finished = piece.left == 0
        if finished:
            self._advance(piece, piece.answers)

    def _advance(self, piece: _Open, answers: list[Any] | None) -> None:
        """Resume a generator until it asks for something that takes work, or ends."""
        while True:
            try:
                request = piece.work.send(answers)  # type: ignore[arg-type]
            except StopIteration:
                with self._lock:
                    self._open -= 1
                    self._lock.notify_all()
                return
            if request.items:
                break
            answers = []
        piece.answers = [None] * len(request.items)
        piece.left = len(request.items)
        with self._lock:
            self._items.extend((piece, i, request) for i in range(len(request.items)))
            self._lock.notify_all()
