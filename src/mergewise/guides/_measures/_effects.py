"""What a part of a task vector does to the loss, to first order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence import Evidence
from mergewise.evidence.models import StoredTensors
from mergewise.guides._base import Expert
from mergewise.guides._measures._cells import Cell

if TYPE_CHECKING:
    from torch import Tensor

STATISTIC = "gradient_weight"


def mean_of(evidence: Evidence, kept: str, tensor: str) -> Tensor | None:
    """The mean over examples of a sum of `gradient_weight`; None if it does not describe `tensor`.

    Raises:
        EvidenceError: if it was collected without that sum.
        CheckpointError: if the file changed or is damaged.
    """
    if (STATISTIC, tensor) not in evidence.entries:
        return None
    means = evidence.values(STATISTIC, tensor)
    if kept not in means:
        raise EvidenceError(
            f"{evidence.path}: {STATISTIC} was collected without {kept!r}; collect it again with "
            f"`--set {STATISTIC}.keep={kept}`"
        )
    return means[kept]


def effects(expert: Expert, base: Checkpoint, cells: Sequence[Cell]) -> dict[Cell, float]:
    """By cell: <g, d>, what the mean loss would fall without that part of the task vector d.

    g is the gradient of the mean loss at the expert, over its examples; exact if the loss is
    linear. In nats. Cells that the evidence does not describe are left out.

    Raises:
        EvidenceError: if the evidence has no gradients, or fits another model.
        NonFiniteError: if a weight is NaN or infinite.
        CheckpointError: if a file changed or is damaged.
    """
    found: dict[Cell, float] = {}
    for cell in cells:
        parts = [_effect(expert, base, name) for name in cell.tensors]
        known = [part for part in parts if part is not None]
        if known:
            found[cell] = math.fsum(known)
    return found


def _effect(expert: Expert, base: Checkpoint, name: str) -> float | None:
    evidence = expert.evidence[STATISTIC]
    gradient = mean_of(evidence, "gradient", name)
    if gradient is None or name not in expert.checkpoint.tensors:
        return None
    change = StoredTensors(expert.checkpoint)[name].double() - StoredTensors(base)[name]
    if gradient.shape != change.shape:
        raise EvidenceError(
            f"{evidence.path}: {name} has shape {list(gradient.shape)}, and {expert.label} "
            f"{list(change.shape)}; was it collected on this model?"
        )
    effect = float(torch.sum(gradient.double() * change))
    if not math.isfinite(effect):
        raise NonFiniteError(f"{expert.label}: {name} holds NaN or infinity; fetch it again")
    return effect
