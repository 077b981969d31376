"""Torch's own threads, which would add sums up in an order that depends on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergewise._lazy import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Within this context the engine's workers are the only threads that compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
