"""What every refusal must keep to: time, memory, and a message fit to print."""

import json
import signal
import time
import tracemalloc
from contextlib import contextmanager

import pytest

from mergewise.errors import MergewiseError

MB = 1_000_000


@contextmanager
def bounded(megabytes=20):
    """Fail on a hang, on more than a second of CPU, or on a large allocation."""

    def late(*args):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
    finally:
        spent = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert spent < 1
    assert peak < megabytes * MB


def refused(action, path, message="", megabytes=20):
    with bounded(megabytes), pytest.raises(MergewiseError) as caught:
        action(path)
    text = str(caught.value)
    assert message in text
    assert text.isprintable() and len(text) < 2000
    return caught.value


def entry(dtype="U8", shape=(1,), offsets=(0, 1), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def as_bytes(header):
    return header if isinstance(header, bytes) else json.dumps(header).encode()
