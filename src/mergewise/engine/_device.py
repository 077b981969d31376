"""What to compute with: the device, the processors, and what to say when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mergewise._lazy import torch
from mergewise.errors import MergewiseError


def pick_device(device: str) -> str:
    """The torch device to compute on.

    Raises:
        MergewiseError: if it does not exist here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    found: torch.device | None
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise MergewiseError(f"device {device!r}: expected auto, cpu, or cuda:N")
    if found.type == "cpu":
        return "cpu"
    if (found.index or 0) >= torch.cuda.device_count():
        raise MergewiseError(
            f"device {device!r}: {torch.cuda.device_count()} CUDA devices are visible; "
            "use --device cpu, or one that exists"
        )
    return device


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
