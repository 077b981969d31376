"""A model whose tensors lie between a base and an expert, each element by its own share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import (
    TORCH_NAMES,
    ChangedRef,
    Checkpoint,
    FileReader,
    TensorRef,
    changed_whole,
    read_whole,
)
from mergewise.errors import CheckpointError, EvidenceError
from mergewise.evidence.models._names import Names, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = Mapping[str, "Tensor"]
Share = Callable[[str], "Tensor | float"]
"""By tensor: how much of the task vector is taken, 0 to 1, for all elements or for each."""


class StoredTensors(Mapping[str, "Tensor"]):
    """A checkpoint's tensors in float32 (float64 as they are), each read when asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._reader = FileReader(checkpoint.stamps)

    def __getitem__(self, name: str) -> Tensor:
        ref = self._checkpoint.tensors[name]
        if ref.dtype not in TORCH_NAMES:
            raise CheckpointError(
                f"{ref.file}: {name} has elements of type {ref.dtype}, which cannot be read; "
                "use an unquantised checkpoint"
            )
        if isinstance(ref, ChangedRef):
            return changed_whole(ref, self._read)
        value = self._read(ref)
        return value.float() if value.is_floating_point() and value.element_size() < 4 else value

    def _read(self, ref: TensorRef) -> Tensor:
        return read_whole(self._reader, ref)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._checkpoint.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return self._checkpoint.tensors[name].shape


class Masked:
    """Puts base + share * (expert - base) into the tensors of a module that are `chosen`.

    Its other tensors become the base's, as in a merge that leaves them alone; those that the base
    lacks, or has in another shape (a head of the expert's own), stay as they are.

    Args:
        module: the expert's, in float32 or wider.
        names: its parameters' names in the checkpoints.
        base, expert: by the checkpoints' names.
        chosen: which of these have a share.

    Raises:
        EvidenceError: if a chosen tensor is not in all three, or not of one shape.
    """

    def __init__(
        self, module: nn.Module, names: Names, base: Tensors, expert: Tensors,
        chosen: Collection[str],
    ) -> None:  # fmt: skip
        self.base, self.expert = base, expert
        self._places: dict[str, tuple[Tensor, Part]] = {}
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, value in held.items():
            for part in names.of(name):
                self._places[part.tensor] = value, part
        self.chosen = tuple(sorted(chosen))
        for name in self.chosen:
            self._check(name)
        self._rest = [n for n in self._places if n not in chosen and self._fits(n)]
        wanted = {id(self._places[name][0]) for name in self.chosen}
        self.parameters = {n: p for n, p in module.named_parameters() if id(p) in wanted}

    def put(self, share: Share) -> None:
        """Set every chosen tensor; shares of 0 and 1 give the base and the expert exactly."""
        with torch.no_grad():
            for name in self.chosen:
                place = self._place(name)
                base, expert = (source[name].to(place) for source in (self.base, self.expert))
                weight = share(name)
                # a number as well: lerp is exact at both ends
                place.copy_(torch.lerp(base, expert, torch.as_tensor(weight).to(place)))

    def slopes(self) -> Iterator[tuple[str, Tensor]]:
        """By chosen tensor: the gradient that lies in ``.grad``, for its shares."""
        for name in self.chosen:
            value, part = self._places[name]
            if value.grad is None:
                yield name, torch.zeros_like(self._place(name))
            else:
                gradient = part.of(value.grad)
                change = self.expert[name].to(gradient) - self.base[name].to(gradient)
                yield name, gradient * change

    @contextmanager
    def placed(self) -> Iterator[None]:
        """The other tensors are the base's meanwhile, and everything the expert's after."""
        kept = {name: value.grad for name, value in self.parameters.items()}
        for value in self.parameters.values():
            value.grad = None
        try:
            self._set(self._rest, self.base)
            yield
        finally:
            for name, value in self.parameters.items():
                value.grad = kept[name]
            self._set([*self._rest, *self.chosen], self.expert)

    def _set(self, tensors: Collection[str], source: Tensors) -> None:
        with torch.no_grad():
            for name in tensors:
                self._place(name).copy_(source[name])

    def _place(self, name: str) -> Tensor:
        """Where a tensor's elements lie in the module; changing them changes the module."""
        value, part = self._places[name]
        if not value.is_contiguous():
            value.data = value.data.contiguous()
        return part.of(value.data)

    def _fits(self, name: str) -> bool:
        shape = self._places[name][1].shape
        sources = (self.base, self.expert)
        return all(name in source and shape_of(source, name) == shape for source in sources)

    def _check(self, name: str) -> None:
        if name not in self._places:
            raise EvidenceError(
                f"{name} is in no parameter of the model as it runs; leave it out of `tensors`"
            )
        if not self._fits(name):
            told = [
                list(shape_of(source, name)) if name in source else "absent"
                for source in (self.base, self.expert)
            ]
            raise EvidenceError(
                f"{name}: {told[0]} in the base and {told[1]} in the expert; expected one shape. "
                "Leave it out of `tensors`, or see that the expert was tuned from this base"
            )


def shape_of(source: Tensors, name: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it where it lies in a file."""
    if isinstance(source, StoredTensors):
        return source.shape(name)
    return tuple(source[name].shape)
