"""How much room sums need, and where they are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise._units import show_bytes
from mergewise.errors import OutputError
from mergewise.evidence.models._sites import Sites
from mergewise.evidence.statistics._base import Pass, Sums
from mergewise.evidence.statistics._forward import Job
from mergewise.evidence.statistics._gradient_base import GradientPass, GradientStatistic
from mergewise.evidence.statistics._gradient_groups import HOOKED, wants
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
        if site.kind == "router":
            weights = torch.empty(2, 1, device="meta")
            job.statistic.routing(run, site, outputs, weights.long(), weights)
    return sum(sizes.bytes.values())


def gradient_bytes(job: Job, sites: Sites, float64: bool) -> int:
    """Bytes of a gradient statistic's sums: it is run on tensors that have shapes only."""
    sizes = _Sizes(float64)
    parts = {part.tensor: part for parts in sites.names.parts.values() for part in parts}
    shapes = {name: torch.empty(part.shape, device="meta") for name, part in parts.items()}
    given = job.run
    run = GradientPass(given.options, given.model, sizes, given.config, weights=shapes)
    job.statistic.gradients(run, {n: v for n, v in shapes.items() if wants(job.statistic, run, n)})
    if isinstance(job.statistic, GradientStatistic) and job.statistic.of_outputs:
        for site in job.sites.values():
            if site.kind in HOOKED:
                rows = torch.empty(2, site.channels[1], device="meta")
                job.statistic.output_gradients(run, site, rows)
    return sum(sizes.bytes.values())


def make_sums(
    sizes: Sequence[int], memory: int | None, folder: Path, float64: bool, device: torch.device
) -> StoredSums:
    """Sums for the whole run: on the GPU or in memory if they fit, else on the output's disk.

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
    if on_disk:
        return DiskSums(folder, float64)
    return MemorySums(float64, None if _fits_on(device, total) else "cpu")


def _fits_on(device: torch.device, total: int) -> bool:
    return device.type == "cuda" and total < SHARE * torch.cuda.mem_get_info(device)[0]


def free_memory() -> int:
    """Bytes of memory that are free, or soon could be."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 20
        return pages * 4096 // 2
