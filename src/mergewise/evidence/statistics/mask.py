"""Masks over a task vector: which of an expert's changes a merge takes."""

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


class Mask(Statistic):
    """One number, 0 or 1, for every element; a guide trains it, or a file holds it."""

    name = "mask"
    summary = "which of an expert's changes are taken; trained by guides, or read from a file"
    sums = {"mask": "1 where the change is taken, else 0; shape of the tensor"}
    need = "file"
    data = "labelled"
    unit = "examples"
    source = "Localize-and-Stitch, He et al. 2024, arXiv 2408.13656"

    def read(
        self, checkpoint: Checkpoint, path: Path, options: Settings
    ) -> Iterator[tuple[str, str, Tensor, int]]:
        """Masks that others trained: safetensors of bools, or of zeros and ones, by tensor.

        Raises:
            EvidenceError: if a mask is of no tensor, of another shape, or holds something else.
            CheckpointError: if the file cannot be read.
        """
        for name, value in StoredTensors(open_checkpoint(path)).items():
            if name not in checkpoint.tensors:
                raise EvidenceError(f"{path}: {name} is no tensor of {checkpoint.path}")
            shape = checkpoint.tensors[name].shape
            if tuple(value.shape) != shape:
                raise EvidenceError(
                    f"{path}: {name} has shape {list(value.shape)}, expected {list(shape)}"
                )
            if not bool(((value == 0) | (value == 1)).all()):
                raise EvidenceError(f"{path}: {name} is no mask; expected zeros and ones")
            yield name, "mask", value.to(torch.float32), 1

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "m_j = 1 where the merge takes the expert's change of element j, else 0. The guides "
            "localize_and_stitch and grafting train such masks: m = round(sigmoid(S)), S by "
            "gradient descent on the expert's loss at base + sigmoid(S) * (expert - base). Here "
            "one that lies in a safetensors file (bools, or zeros and ones, under the names of "
            "the checkpoint's tensors) is made evidence."
        )
