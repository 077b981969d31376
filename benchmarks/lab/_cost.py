"""What a call costs: wall time, and memory beyond what was in use before."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mergewise._lazy import torch

T = TypeVar("T")
_SELF = Path("/proc/self")
_MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Attributes:
    seconds: wall time.
    mebibytes: peak memory during the call less memory in use before it; of the GPU if the call
        ran there.
    how: where the number is from, for readers of the JSON.
    """

    seconds: float
    mebibytes: float
    how: str


def measured(call: Callable[[], T], device: str = "cpu") -> tuple[T, Cost]:
    """Run `call` and say what it cost.

    The peak is the kernel's for the call alone where Linux lets a process reset it; elsewhere it
    is the growth of the whole process's peak, which shows nothing below an earlier peak.
    """
    before, peak, how = _meter(device)
    start = time.perf_counter()
    result = call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return result, Cost(seconds, max(0.0, (peak() - before) / _MIB), how)


def _meter(device: str) -> tuple[float, Callable[[], float], str]:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        used = torch.cuda.memory_allocated(device)
        return used, lambda: torch.cuda.max_memory_allocated(device), "allocated on the GPU"
    try:
        (_SELF / "clear_refs").write_text("5")
        return _status("VmRSS"), lambda: _status("VmHWM"), "resident peak of the call"
    except OSError:
        return _process_peak(), _process_peak, "growth of the process's resident peak"


def _status(field: str) -> float:
    for line in (_SELF / "status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _process_peak() -> float:
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
