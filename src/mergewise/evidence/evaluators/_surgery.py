"""A correction of a merged encoder's features for one task, as Representation Surgery trains it.

It lies beside the weights it was trained for, as ``surgery.TASK.safetensors``: ``down``
[rank, width] and ``up`` [width, rank], and in the metadata how features are pooled and where it
comes from. A feature z becomes ``z - up ReLU(down z)``.

Yang et al. 2024, arXiv 2402.02705.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import TaskError
from mergewise.evidence.evaluators._heads import packed, tensor_of

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "mergewise-surgery"
_TASK = re.compile(r"[\w-][\w.-]{0,99}")


@dataclass(frozen=True)
class Surgery:
    """From a merged model's features to the expert's.

    Attributes:
        down: float32 [rank, width].
        up: float32 [width, rank].
        pool: how the features it takes are made.
        name: for messages, the file.
        metadata: what else its file says.
    """

    down: Tensor
    up: Tensor
    pool: str
    name: str = "surgery"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Channels of the features."""
        return int(self.down.shape[1])

    def correct(self, features: Tensor) -> Tensor:
        """Features [examples, width], corrected.

        Raises:
            TaskError: if they have another width.
        """
        if features.shape[-1] != self.width:
            raise TaskError(
                f"{self.name}: the surgery takes {self.width} features, the model gives "
                f"{features.shape[-1]}; was it trained for another model?"
            )
        down, up = self.down.to(features.device), self.up.to(features.device)
        wide = features.float()
        return wide - (wide @ down.T).relu() @ up.T

    def file(self) -> bytes:
        """Its file."""
        metadata = {**self.metadata, "format": FORMAT, "version": "1", "pool": self.pool}
        return packed({"down": self.down, "up": self.up}, metadata)


def surgery_file(task: str) -> str:
    """The name of a task's file in a model's folder.

    Raises:
        TaskError: if the task's name is none for a file.
    """
    if not _TASK.fullmatch(task):
        raise TaskError(
            f"surgery {task!r}: letters, digits, dots and dashes expected, as in the name of the "
            "file surgery.NAME.safetensors"
        )
    return f"surgery.{task}.safetensors"


def load_surgery(path: Path | str) -> Surgery:
    """Read a surgery's file.

    Raises:
        CheckpointError: if it is not a safetensors file.
        TaskError: if its tensors or metadata are not those of a surgery.
    """
    from mergewise.checkpoint import read_header

    path = Path(path)
    header = read_header(path)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    down, up = shapes.get("down", ()), shapes.get("up", ())
    floats = all(info.dtype in ("F16", "BF16", "F32", "F64") for info in header.tensors.values())
    if set(shapes) != {"down", "up"} or not floats or len(down) != 2 or up != down[::-1]:
        raise TaskError(
            f"{path}: `down` [rank, width] and `up` [width, rank] expected; it holds "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in shapes.items()) or 'nothing'}"
        )
    pool = header.metadata.get("pool", "")
    if header.metadata.get("format") != FORMAT or pool not in ("cls", "mean", "pooler"):
        raise TaskError(f"{path}: no surgery that `mergewise transform surgery` wrote")
    data = path.read_bytes()
    tensors = {name: tensor_of(info, data) for name, info in header.tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise TaskError(f"{path}: it holds NaN or infinity; train it again")
    return Surgery(tensors["down"], tensors["up"], pool, str(path), header.metadata)
