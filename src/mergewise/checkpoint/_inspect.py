"""A checkpoint at a glance, from headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergewise.checkpoint._adapters import open_reference
from mergewise.checkpoint._hub import origin_of
from mergewise.checkpoint._model import Checkpoint
from mergewise.checkpoint._parts import find_layers, tied_head


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: dtype as safetensors code, size in bytes as stored, the file's name.

    `stored_as` names the type in the file of a quantised tensor; `dtype` is what it is read as.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    file: str
    stored_as: str | None = None


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
        stored: of quantised weights, bytes by the type in the file.
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
    stored: dict[str, int] = field(default_factory=dict)

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
    stored: dict[str, int] = {}
    for ref in checkpoint.tensors.values():
        dtypes[ref.dtype] = dtypes.get(ref.dtype, 0) + ref.numel
        if kind := ref.stored_as:
            stored[kind] = stored.get(kind, 0) + ref.nbytes
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
            TensorSummary(r.name, r.dtype, r.shape, r.numel, r.nbytes, r.file.name, r.stored_as)
            for r in checkpoint.tensors.values()
        ),
        stored=dict(sorted(stored.items())),
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
