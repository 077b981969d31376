"""A task's own classification head, kept apart from the body that is merged.

A head is a safetensors file with ``weight`` [classes, width] and perhaps ``bias`` [classes]. A
head of prototypes, as CLIP makes of class names, compares directions: its metadata say
``normalise: true`` and ``scale: 100``, and a logit is the scale times the cosine of feature and
prototype. Merging leaves heads alone, so one body can be scored on every task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.checkpoint import Header, TensorInfo

_BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class Head:
    """From features to logits.

    Attributes:
        weight: float32 [classes, width].
        bias: float32 [classes], or None.
        normalise: whether features and rows of the weight are scaled to length one first.
        scale: what logits are multiplied by.
        name: for messages, the file.
    """

    weight: Tensor
    bias: Tensor | None = None
    normalise: bool = False
    scale: float = 1.0
    name: str = "head"

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        """Channels of the features it takes."""
        return int(self.weight.shape[1])

    def logits(self, features: Tensor) -> Tensor:
        """Logits [examples, classes] of features [examples, width].

        Raises:
            TaskError: if the features have another width.
        """
        if features.shape[-1] != self.width:
            raise TaskError(
                f"{self.name}: the head takes {self.width} features, the model gives "
                f"{features.shape[-1]}; is it the head of another model, or another `pool`?"
            )
        weight, features = self.weight.to(features.device), features.float()
        if self.normalise:
            normal = torch.nn.functional.normalize
            weight, features = normal(weight, dim=-1), normal(features, dim=-1)
        bias = None if self.bias is None else self.bias.to(features.device)
        logits = torch.nn.functional.linear(features, weight * self.scale, bias)
        return logits


def load_head(path: Path | str) -> Head:
    """Read a head's file.

    Raises:
        CheckpointError: if it is not a safetensors file.
        TaskError: if its tensors or metadata are not those of a head.
    """
    from mergewise.checkpoint import read_header

    path = Path(path)
    header = read_header(path)
    _check_tensors(path, header)
    data = path.read_bytes()
    tensors = {name: tensor_of(info, data) for name, info in header.tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TaskError(f"{path}: {name} holds NaN or infinity; train or save the head again")
    normalise, scale = _metadata(path, header.metadata)
    return Head(tensors["weight"], tensors.get("bias"), normalise, scale, str(path))


def save_head(
    path: Path | str,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    normalise: bool = False,
    scale: float = 1.0,
) -> None:
    """Write a head's file whole, or not at all; an existing one is replaced.

    Raises:
        TaskError: if the shapes are not those of a head.
        OutputError: if it cannot be written.
    """
    from mergewise.checkpoint import write_file

    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    _check_shapes(str(path), {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    metadata = {"format": "pt", "normalise": str(normalise).lower(), "scale": repr(float(scale))}
    write_file(Path(path), packed(tensors, metadata))


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A small safetensors file of float32 tensors, as bytes."""
    from mergewise.checkpoint import plan_shards

    kept = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in tensors.items()}
    specs = [(name, "F32", tuple(tensor.shape)) for name, tensor in kept.items()]
    [layout] = plan_shards(specs, 1 << 62, metadata)
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    for name, tensor in kept.items():
        start = layout.offsets[name]
        data[start : start + layout.sizes[name]] = tensor.numpy().tobytes()
    return bytes(data)


def _check_tensors(path: Path, header: Header) -> None:
    names = set(header.tensors)
    if "weight" not in names or names - {"weight", "bias"}:
        raise TaskError(
            f"{path}: a head holds `weight` and perhaps `bias`, this file holds "
            f"{', '.join(sorted(names)[:4]) or 'nothing'}; `save_head` writes such files"
        )
    for name, info in header.tensors.items():
        if info.dtype not in ("F16", "BF16", "F32", "F64"):
            raise TaskError(f"{path}: {name} is {info.dtype}, expected a floating-point type")
    _check_shapes(str(path), {name: info.shape for name, info in header.tensors.items()})


def _check_shapes(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    weight = shapes["weight"]
    if len(weight) != 2 or 0 in weight:
        raise TaskError(f"{name}: weight has the shape {list(weight)}, expected [classes, width]")
    if shapes.get("bias", weight[:1]) != weight[:1]:
        raise TaskError(
            f"{name}: bias has the shape {list(shapes['bias'])}, expected [{weight[0]}] as the "
            "weight has that many rows"
        )


def tensor_of(info: TensorInfo, data: bytes) -> Tensor:
    """A tensor of a whole file's bytes, as float32."""
    from mergewise.checkpoint import TORCH_NAMES

    dtype = getattr(torch, TORCH_NAMES[info.dtype])
    part = bytearray(data[info.start : info.end])
    return torch.frombuffer(part, dtype=dtype).reshape(info.shape).float()


def _metadata(path: Path, metadata: dict[str, str]) -> tuple[bool, float]:
    said = metadata.get("normalise", "false").lower()
    if said not in _BOOLS:
        raise TaskError(f"{path}: metadata normalise: true or false expected, got {said!r}")
    try:
        scale = float(metadata.get("scale", "1"))
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise TaskError(
            f"{path}: metadata scale: a positive number expected, got {metadata['scale']!r}"
        )
    return _BOOLS[said], scale
