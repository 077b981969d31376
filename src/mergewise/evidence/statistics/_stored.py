"""Statistics that guides find, or that lie in a file by the checkpoint's tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, open_checkpoint
from mergewise.errors import EvidenceError
from mergewise.evidence.models._masked import StoredTensors
from mergewise.evidence.statistics._base import Statistic
from mergewise.methods import Settings

if TYPE_CHECKING:
    from torch import Tensor


class StoredStatistic(Statistic):
    """Base of statistics that are read from safetensors; its one sum has its name."""

    need = "file"
    unit = "examples"

    def read(
        self, checkpoint: Checkpoint, path: Path, options: Settings
    ) -> Iterator[tuple[str, str, Tensor, int]]:
        """What others found: safetensors, by the names of the checkpoint's tensors.

        Raises:
            EvidenceError: if a tensor is none of the checkpoint's, or `unfit`.
            CheckpointError: if the file cannot be read.
        """
        for name, value in StoredTensors(open_checkpoint(path)).items():
            if name not in checkpoint.tensors:
                raise EvidenceError(f"{path}: {name} is no tensor of {checkpoint.path}")
            if problem := self.unfit(value, checkpoint.tensors[name].shape):
                raise EvidenceError(f"{path}: {name} {problem}")
            yield name, self.name, value.to(torch.float32), 1

    @abstractmethod
    def unfit(self, value: Tensor, shape: Sequence[int]) -> str:
        """Why a value cannot describe a tensor of this shape, in words; empty if it can."""
