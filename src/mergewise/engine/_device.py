"""What to compute with: the processors, and what to say when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mergewise._lazy import torch
from mergewise.errors import MergewiseError


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def explained_memory(device: str) -> Iterator[None]:
    """Say what to do where memory runs out, on the device or on the host.

    Raises:
        MergewiseError: instead of MemoryError and torch's own errors.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        place, remedy = "memory", "pass --memory or fewer --workers"
        if isinstance(error, torch.OutOfMemoryError):
            place, remedy = f"memory of {device}", "pass fewer --workers, or --device cpu"
        raise MergewiseError(f"the {place} does not suffice; {remedy}") from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocator for host memory raises a plain RuntimeError
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)
