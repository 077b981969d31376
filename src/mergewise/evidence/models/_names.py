"""Which tensors of the checkpoint a parameter in memory is made of.

`transformers` renames tensors when it loads a model, and packs the experts of a mixture into one
parameter. Evidence is kept under the checkpoint's names, so the way back is found by sending
small marked tensors through the library's own conversion for saving.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROOM = 1 << 40
"""More rows than any tensor has; tells one parameter's marks from the next one's."""


@dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint as a range of a parameter's rows.

    Attributes:
        tensor: its name in the checkpoint.
        start: first row, the parameter being seen as [rows, last axes].
        stop: the row after the last one.
        shape: the tensor's shape.
    """

    tensor: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def of(self, value: Tensor) -> Tensor:
        """This part of a parameter's value, or of its gradient."""
        if self.shape == tuple(value.shape):
            return value
        width = math.prod(self.shape) // (self.stop - self.start)
        return value.reshape(-1, width)[self.start : self.stop].reshape(self.shape)


class Names:
    """The checkpoint's tensors behind a module's parameters.

    Args:
        module: any module; one of `transformers` may rename and pack.
        stored: the names in the checkpoint, if there is one.

    Attributes:
        parts: by name of a parameter or buffer. Tied parameters have one entry, under the name
            that is stored.
        mixed: stored tensors that no single parameter holds, such as two that were joined.
    """

    def __init__(self, module: nn.Module, stored: Collection[str] = ()) -> None:
        state = _untied(module, stored)
        self.aliases = _aliases(module, state)
        self._shapes = {name: tuple(value.shape) for name, value in state.items()}
        found, self.mixed = _found(module, state)
        self.parts = {
            name: _as_stored(module, name, found.get(name, ()), self._shapes[name], stored)
            for name in state
        }

    def of(self, parameter: str) -> tuple[Part, ...]:
        """The parts of a parameter; a tied one's are those of its twin. Empty if unknown."""
        return self.parts.get(self.aliases.get(parameter, parameter), ())

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape of a parameter in memory."""
        return self._shapes[self.aliases.get(parameter, parameter)]

    def split(self, parameter: str, value: Tensor) -> dict[str, Tensor]:
        """A parameter's value or gradient, by the checkpoint's names."""
        return {part.tensor: part.of(value) for part in self.of(parameter)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    kept = _persistent(module)
    buffers = {name: value for name, value in module.named_buffers() if name in kept}
    return {**dict(module.named_parameters(remove_duplicate=False)), **buffers}


def _persistent(module: nn.Module) -> set[str]:
    found = set()
    for prefix, child in module.named_modules():
        for name in child._buffers:
            if name not in child._non_persistent_buffers_set:
                found.add(f"{prefix}.{name}" if prefix else name)
    return found


def _untied(module: nn.Module, stored: Collection[str]) -> dict[str, Tensor]:
    """One entry for every distinct tensor: under the stored name where that is known."""
    chosen: dict[int, str] = {}
    state = _state(module)
    for name, value in state.items():
        if id(value) not in chosen or (name in stored and chosen[id(value)] not in stored):
            chosen[id(value)] = name
    return {name: state[name] for name in state if chosen[id(state[name])] == name}


def _aliases(module: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, str]:
    names = {id(value): name for name, value in kept.items()}
    return {n: names[id(v)] for n, v in _state(module).items() if names[id(v)] != n}


def _found(
    module: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Part, ...]], tuple[str, ...]]:
    probes = {
        name: _probe(index, tuple(value.shape)) for index, (name, value) in enumerate(state.items())
    }
    names = list(state)
    parts: dict[str, list[Part]] = {}
    mixed = []
    for tensor, probe in _for_saving(module, probes).items():
        marks = probe.flatten()
        owner, start = divmod(int(marks[0]), _ROOM) if len(marks) else (-1, 0)
        whole = torch.arange(len(marks)) + owner * _ROOM + start
        if owner < 0 or not torch.equal(marks.cpu(), whole):
            mixed.append(tensor)
            continue
        source = tuple(state[names[owner]].shape)
        alone = len(marks) == probes[names[owner]].numel()
        if alone and probe.shape != probes[names[owner]].shape:
            # turned round, which rows alone do not tell
            mixed.append(tensor)
            continue
        shape = source if alone else (*probe.shape[:-1], source[-1])
        parts.setdefault(names[owner], []).append(Part(tensor, start, start + len(marks), shape))
    return {name: tuple(found) for name, found in parts.items()}, tuple(mixed)


def _probe(index: int, shape: tuple[int, ...]) -> Tensor:
    """Row numbers in the shape of a parameter whose last axes are cut to one element."""
    kept = {0: 0, 1: 1, 2: 1, 3: 2}.get(len(shape), 1)
    small = (*shape[:kept], *(1 for _ in shape[kept:]))
    return (torch.arange(math.prod(small)) + index * _ROOM).reshape(small)


def _for_saving(module: nn.Module, probes: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return probes
    if not isinstance(module, PreTrainedModel):
        return probes
    try:
        return dict(revert_weight_conversion(module, probes))
    except (RuntimeError, ValueError, IndexError, TypeError):
        # conversions that need the last axes; the model's own names are then all there is
        return probes


def _as_stored(
    module: nn.Module,
    name: str,
    parts: tuple[Part, ...],
    shape: tuple[int, ...],
    stored: Collection[str],
) -> tuple[Part, ...]:
    """Prefer names that are in the checkpoint: converted, with or without the base's prefix."""
    if not stored:
        return parts
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    for change in (
        lambda n: n,
        lambda n: f"{prefix}{n}",
        lambda n: n.removeprefix(prefix),
    ):
        if parts and all(change(part.tensor) in stored for part in parts):
            return tuple(Part(change(p.tensor), p.start, p.stop, p.shape) for p in parts)
    rows = math.prod(shape[:-1]) if len(shape) > 1 else max(1, math.prod(shape))
    for plain in (name, f"{prefix}{name}", name.removeprefix(prefix)):
        if plain in stored:
            return (Part(plain, 0, rows, shape),)
    return ()
