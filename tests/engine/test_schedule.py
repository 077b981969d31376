"""Threads of the engine: nobody goes on before they have finished."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from mergewise.engine._schedule import Scheduler
from mergewise.engine._work import Parallel, Work
from mergewise.errors import InterruptedMergeError


@pytest.mark.parametrize("presses", [1, 3])
def test_an_interrupted_run_ends_when_its_workers_have(presses: int) -> None:
    begun, finished = threading.Barrier(3), []

    def block(item: int) -> None:
        begun.wait(10)
        time.sleep(0.6)
        finished.append(item)

    def work() -> Work:
        yield Parallel(block, [0, 1])

    def press() -> None:
        begun.wait(10)
        for _ in range(presses):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(InterruptedMergeError):
        Scheduler(2).run([work()])
    assert sorted(finished) == [0, 1]
    presser.join()
    workers = [t for t in threading.enumerate() if t.name.startswith("mergewise-")]
    for worker in workers:  # not marked as ended while they run, or Python would not wait at exit
        worker.join(5)
        assert not worker.is_alive()
