"""How many of the changes of a cell are far above their mean."""

from __future__ import annotations

from collections.abc import Sequence

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import NonFiniteError
from mergewise.evidence.models import StoredTensors
from mergewise.guides._base import Ask
from mergewise.guides._measures._cells import Cell


def outlier_shares(ask: Ask, cells: Sequence[Cell], multiple: float) -> list[dict[Cell, float]]:
    """For each expert and cell, the share of elements with |d| > multiple * mean |d|.

    The mean is over each tensor by itself. Tensors are read whole, one at a time.

    Args:
        cells: what an expert lacks is left out.

    Raises:
        NonFiniteError: if a weight is NaN or infinite.
        CheckpointError: if a file changed or is damaged.
    """
    total = sum(ask.foundation.tensors[n].nbytes for c in cells for n in c.tensors)
    whole, done, found = 2 * total * len(ask.experts), 0, []
    for expert in ask.experts:
        own: dict[Cell, float] = {}
        for cell in cells:
            known = [name for name in cell.tensors if name in expert.checkpoint.tensors]
            counts = [_outliers(ask.foundation, expert.checkpoint, n, multiple) for n in known]
            if elements := sum(size for _, size in counts):
                own[cell] = sum(count for count, _ in counts) / elements
            done += 2 * sum(ask.foundation.tensors[name].nbytes for name in cell.tensors)
            if ask.progress is not None:
                ask.progress(done, whole)
        found.append(own)
    return found


def _outliers(base: Checkpoint, model: Checkpoint, name: str, multiple: float) -> tuple[int, int]:
    """How many, of how many."""
    change = (StoredTensors(model)[name] - StoredTensors(base)[name]).abs()
    mean = float(change.mean(dtype=torch.float64))
    if not mean < float("inf"):
        raise NonFiniteError(f"{model.path}: {name} holds NaN or infinity; fetch it again")
    return int((change > multiple * mean).sum()), change.numel()
