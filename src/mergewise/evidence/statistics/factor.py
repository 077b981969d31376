"""Factors of a task vector: how much of an expert's change a merge takes, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, open_checkpoint
from mergewise.errors import EvidenceError
from mergewise.evidence._models._masked import StoredTensors
from mergewise.evidence.statistics._base import Statistic
from mergewise.methods import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Factor(Statistic):
    """One number for each row, column or element; a guide finds it, or a file holds it."""

    name = "factor"
    summary = "factors of an expert's changes, by row or column; found by guides, or from a file"
    sums = {"factor": "the factor; the tensor's shape, 1 along axes where it is repeated"}
    need = "file"
    data = "unlabelled"
    unit = "examples"
    source = "weights by attention head: SLTA (submodule linearity), 2025, arXiv 2504.10902"

    def read(
        self, checkpoint: Checkpoint, path: Path, options: Settings
    ) -> Iterator[tuple[str, str, Tensor, int]]:
        """Factors of one's own: safetensors, by the names of the checkpoint's tensors.

        Raises:
            EvidenceError: if one is of no tensor, does not fit its shape, or is not finite.
            CheckpointError: if the file cannot be read.
        """
        for name, value in StoredTensors(open_checkpoint(path)).items():
            if name not in checkpoint.tensors:
                raise EvidenceError(f"{path}: {name} is no tensor of {checkpoint.path}")
            shape, given = checkpoint.tensors[name].shape, tuple(value.shape)
            fits = len(given) == len(shape) and all(
                a in (1, b) for a, b in zip(given, shape, strict=True)
            )
            if not fits:
                raise EvidenceError(
                    f"{path}: {name} has shape {list(given)}, expected {list(shape)}, or that with "
                    "1 for axes along which the factor is repeated"
                )
            if not value.is_floating_point() or not bool(value.isfinite().all()):
                raise EvidenceError(f"{path}: {name} holds no finite floating-point numbers")
            yield name, "factor", value.to(torch.float32), 1

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "f_j: element j of the expert's task vector is multiplied by f_j where a method of "
            "task vectors merges it (`factors: true`). The guide slta finds one for each attention "
            "head (`granularity: head`). Here one that lies in a safetensors file, under the names "
            "of the checkpoint's tensors, is made evidence."
        )
