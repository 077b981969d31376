"""How much room sums need, and where they are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise._units import show_bytes
from mergewise.errors import OutputError
from mergewise.evidence.statistics._base import Pass, Statistic, Sums
from mergewise.evidence.statistics._forward import Job
from mergewise.evidence.statistics._sites import Site, Sites
from mergewise.evidence.statistics._sums import DiskSums, MemorySums, StoredSums

if TYPE_CHECKING:
    from torch import Tensor

SHARE = 0.4
"""Of the free memory, for all sums together."""


class _Sizes(Sums):
    """Notes what would be added."""

    def __init__(self, float64: bool) -> None:
        self.float64 = float64
        self.bytes: dict[tuple[str, str], int] = {}

    def add(self, tensor: str, name: str, value: Tensor) -> None:
        wide = self.float64 or value.dim() < 2
        self.bytes[tensor, name] = value.numel() * (8 if wide else 4)

    def count(self, tensor: str, amount: int, unit: str = "tokens") -> None:
        """Counts need no room."""


def forward_bytes(job: Job, float64: bool) -> int:
    """Bytes of a forward statistic's sums: it is run on tensors that have shapes only."""
    sizes = _Sizes(float64)
    for site in job.sites.values():
        inputs, outputs = (torch.empty(2, n, device="meta") for n in site.channels)
        run = Pass(job.run.options, job.run.model, sizes, job.run.config)
        if job.statistic.two_models:
            job.statistic.pair(run, site, outputs, outputs)
        else:
            job.statistic.forward(run, site, inputs, outputs)
    return sum(sizes.bytes.values())


def gradient_bytes(statistic: Statistic, sites: Sites, wanted: Iterable[Site]) -> int:
    """Bytes of a gradient statistic's sums, at most."""
    total = 0
    if getattr(statistic, "of_parameters", True):
        parts = (part for parts in sites.names.parts.values() for part in parts)
        elements = sum(torch.Size(part.shape).numel() for part in parts)
        total += 4 * elements * len(statistic.sums)
    if getattr(statistic, "of_outputs", False):
        total += sum(4 * site.channels[1] ** 2 for site in wanted if site.matrix)
    return total


def make_sums(sizes: Sequence[int], memory: int | None, folder: Path, float64: bool) -> StoredSums:
    """Sums for the whole run: in memory if they fit, else on the disk of the output.

    Args:
        sizes: bytes of every statistic.
        memory: bytes that all sums may take.

    Raises:
        OutputError: if the disk has no room for them.
    """
    total = sum(sizes)
    allowed = free_memory() * SHARE if memory is None else memory
    free = shutil.disk_usage(folder).free
    on_disk = total > allowed
    # kept once while adding, once more when the file is written
    need = total * (2 if on_disk else 1)
    if need > free:
        raise OutputError(
            f"{folder}: the sums take {show_bytes(total)}, for which {show_bytes(need)} are "
            f"needed on this disk, and {show_bytes(free)} are free; make room, or leave out large "
            "matrices (input_gram.max_channels)"
        )
    return DiskSums(folder, float64) if on_disk else MemorySums(float64)


def free_memory() -> int:
    """Bytes of memory that are free, or soon could be."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 20
        return pages * 4096 // 2
