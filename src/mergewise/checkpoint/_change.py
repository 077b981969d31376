"""What an adapter does to a tensor, as data; `_change_values` does it."""

from __future__ import annotations

from dataclasses import dataclass

from mergewise.checkpoint._model import TensorRef


@dataclass(frozen=True)
class LowRank:
    """W + scale * B @ A, and with `magnitude` scaled to those norms (DoRA).

    With `middle` it is B @ diag(middle) @ A (AdaLoRA).

    Attributes:
        a: ``[rank, inputs]``; of a convolution ``[rank, channels, *kernel]``.
        b: ``[outputs, rank]``; of a convolution ``[outputs, rank, 1, ...]``.
        turned: the weight is ``[inputs, outputs]``, as Conv1D and embeddings store it.
        magnitude: one norm for each output; None for plain LoRA.
        middle: ``[rank, 1]``, the singular values of AdaLoRA.

    Source: LoRA (Hu et al., 2021, arXiv 2106.09685); DoRA (Liu et al., 2024, arXiv 2402.09353),
    with the norm over a weight's inputs, as PEFT computes it; AdaLoRA (Zhang et al., 2023, arXiv
    2303.10512).
    """

    a: TensorRef
    b: TensorRef
    scale: float
    turned: bool = False
    magnitude: TensorRef | None = None
    middle: TensorRef | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        more = (self.magnitude, self.middle)
        return (self.a, self.b, *(part for part in more if part is not None))


@dataclass(frozen=True)
class Scaled:
    """W multiplied by a vector: each row's number if `by_row`, else each column's.

    Source: IA3 (Liu et al., 2022, arXiv 2205.05638).
    """

    by: TensorRef
    by_row: bool

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        return (self.by,)


@dataclass(frozen=True)
class Shifted:
    """A bias plus `scale` times another (PEFT's ``lora_bias``)."""

    by: TensorRef
    scale: float

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        return (self.by,)


Change = LowRank | Scaled | Shifted


@dataclass(frozen=True)
class ChangedRef(TensorRef):
    """A tensor that is computed: what `file` holds, changed by an adapter.

    `packed` is the tensor before the change where that is computed too (quantised weights).
    Its name and shape are the result's. What reads bytes refuses it (`FileReader.read_into`).
    """

    change: Change
    packed: TensorRef | None = None

    @property
    def stored(self) -> TensorRef:
        """The tensor before the change."""
        if self.packed is not None:
            return self.packed
        return TensorRef(self.name, self.dtype, self.shape, self.start, self.end, self.file)

    @property
    def stored_as(self) -> str | None:
        """What the tensor before the change is packed as; None if it is not."""
        return self.stored.stored_as

    @property
    def extra_bytes(self) -> int:
        """Bytes of the adapter's tensors, as stored."""
        return sum(part.nbytes for part in self.change.parts)
