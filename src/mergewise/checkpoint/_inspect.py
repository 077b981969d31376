"""A checkpoint at a glance, from headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint._adapt import open_reference
from mergewise.checkpoint._folder import Checkpoint
from mergewise.checkpoint._hub import origin_of
from mergewise.checkpoint._layers import find_layers, tied_head


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: dtype as safetensors code, size in bytes, the file's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    file: str


@dataclass(frozen=True)
class LayersSummary:
    """One group of repeated layers; `complete` is false if some layer lacks a tensor."""

    prefix: str
    count: int
    tensors: int
    complete: bool


@dataclass(frozen=True)
class Summary:
    """What `mergewise inspect` shows.

    Attributes:
        parameters: elements of all tensors.
        bytes: of all tensors, without headers.
        dtypes: parameters by safetensors dtype code.
        layers: groups of repeated layers, the largest first.
        tied: (head, embedding) if one tensor serves as both.
    """

    path: str
    architecture: str | None
    model_type: str | None
    parameters: int
    bytes: int
    files: tuple[str, ...]
    dtypes: dict[str, int]
    layers: tuple[LayersSummary, ...]
    tied: tuple[str, str] | None
    warnings: tuple[str, ...]
    tensors: tuple[TensorSummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def inspect_checkpoint(path: Path | str | Checkpoint) -> Summary:
    """Summarise a checkpoint, or a BASE+ADAPTER; no tensor data is read.

    Raises:
        CheckpointError, NotBuiltYetError: as `open_reference`.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_reference(path)
    dtypes: dict[str, int] = {}
    for ref in checkpoint.tensors.values():
        dtypes[ref.dtype] = dtypes.get(ref.dtype, 0) + ref.numel
    return Summary(
        path=_called(checkpoint),
        architecture=checkpoint.architecture,
        model_type=checkpoint.model_type,
        parameters=checkpoint.total_parameters,
        bytes=checkpoint.total_bytes,
        files=tuple(file.name for file in checkpoint.files),
        dtypes=dict(sorted(dtypes.items())),
        layers=_layers(checkpoint),
        tied=tied_head(checkpoint.tensors.keys(), checkpoint.config),
        warnings=checkpoint.warnings,
        tensors=tuple(
            TensorSummary(r.name, r.dtype, r.shape, r.numel, r.nbytes, r.file.name)
            for r in checkpoint.tensors.values()
        ),
    )


def _called(checkpoint: Checkpoint) -> str:
    """A path; of what is on the Hub its name and commit, wherever the cache is."""
    if checkpoint.origin is None:
        return str(checkpoint.path)
    name = f"{checkpoint.origin.repo}@{checkpoint.origin.commit}"
    if checkpoint.path != checkpoint.folder and checkpoint.adapter is None:
        return f"hf://{name}/{checkpoint.path.name}"
    if checkpoint.adapter is None:
        return name
    lora = origin_of(checkpoint.adapter)
    return f"{name}+{checkpoint.adapter if lora is None else f'{lora.repo}@{lora.commit}'}"


def _layers(checkpoint: Checkpoint) -> tuple[LayersSummary, ...]:
    return tuple(
        LayersSummary(g.prefix, g.count, g.tensors, g.tensors == g.count * len(g.suffixes))
        for g in find_layers(checkpoint.tensors)
    )
