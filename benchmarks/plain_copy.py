"""The yardstick: read the same inputs by range, write as many bytes as a merge would, no more.

    python benchmarks/plain_copy.py OUT INPUT [INPUT ...]

Two threads, ranges of half a megabyte into reused buffers, the output (which must not exist yet)
allocated, written in place and flushed to disk. The bytes written are those of the first input.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

RANGE = 1 << 19
THREADS = 2


def copy(out: Path, inputs: list[Path]) -> None:
    size = inputs[0].stat().st_size
    sources = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(out, os.O_RDWR | os.O_CREAT, 0o666)
    os.posix_fallocate(target, 0, size)
    offsets = iter(range(0, size, RANGE))
    lock = threading.Lock()

    def work() -> None:
        buffers = [memoryview(bytearray(RANGE)) for _ in sources]
        while True:
            with lock:
                at = next(offsets, None)
            if at is None:
                return
            count = min(RANGE, size - at)
            for source, buffer in zip(sources, buffers, strict=True):
                os.preadv(source, [buffer[:count]], at)
            os.pwrite(target, buffers[0][:count], at)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(target)


if __name__ == "__main__":
    copy(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
