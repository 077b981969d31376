"""What one model has more than another, tensor by tensor: what adapters are extracted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, FileReader, TensorRef
from mergewise.errors import NonFiniteError
from mergewise.forms._adapter_files import read_tensor

if TYPE_CHECKING:
    from torch import Tensor


_PIECE = 1 << 22


class Described(Protocol):
    """A tensor as headers describe it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


Sum = tuple["Tensor", "Tensor", float]
"""B ``[outputs, rank]`` and A ``[rank, inputs]`` of a change, and the norm of all its parts."""


class Changes(Protocol):
    """A model beside its base.

    Attributes:
        label: what the model is called in messages.
        origin: what an adapter made of it is made of, for its metadata.
        base: the other model.
        tensors: the model's.
    """

    @property
    def label(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def base(self) -> Checkpoint: ...
    @property
    def tensors(self) -> Mapping[str, Described]: ...

    def same(self, name: str) -> bool:
        """Whether a tensor is known to be the base's without reading it."""

    def equal(self, name: str) -> bool:
        """Whether a tensor that is no floating-point number is stored alike in both."""

    def factors(self, name: str) -> Sum | None:
        """A weight's change as factors, exactly, where they are known; else None."""

    def read(self, name: str) -> Tensor:
        """A tensor of the model, whole, in float32 or wider."""

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        """The same, and what it has more than the base's; zero for nothing but rounding.

        Raises:
            NonFiniteError: if one of them holds NaN or infinity.
        """


@dataclass
class CheckpointChanges:
    """A fine-tuned checkpoint beside the one it comes from."""

    finetuned: Checkpoint
    base: Checkpoint

    @property
    def label(self) -> str:
        return str(self.finetuned.path)

    @property
    def origin(self) -> str:
        return f"{self.finetuned.folder.name} minus {self.base.folder.name}"

    @property
    def tensors(self) -> Mapping[str, Described]:
        return self.finetuned.tensors

    def same(self, name: str) -> bool:
        return False

    def equal(self, name: str) -> bool:
        mine, theirs = self.finetuned.tensors[name], self.base.tensors[name]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        with FileReader(self.finetuned.stamps) as one, FileReader(self.base.stamps) as other:
            return all(
                _piece(one, mine, at) == _piece(other, theirs, at)
                for at in range(0, mine.nbytes, _PIECE)
            )

    def factors(self, name: str) -> Sum | None:
        return None

    def read(self, name: str) -> Tensor:
        with FileReader(self.finetuned.stamps) as reader:
            return read_tensor(reader, self.finetuned.tensors[name])

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        mine = self.read(name)
        return mine, difference(self, name, mine)


def _piece(reader: FileReader, ref: TensorRef, start: int) -> bytearray:
    buffer = bytearray(min(_PIECE, ref.nbytes - start))
    reader.read_into(ref, start, memoryview(buffer))
    return buffer


def difference(changes: Changes, name: str, mine: Tensor) -> Tensor:
    """A tensor minus the base's."""
    with FileReader(changes.base.stamps) as reader:
        delta = mine - read_tensor(reader, changes.base.tensors[name])
    if not torch.isfinite(delta).all():
        raise NonFiniteError(
            f"tensor {name} of {changes.label} or {changes.base.path} holds NaN or infinity; "
            "repair that model"
        )
    return delta
