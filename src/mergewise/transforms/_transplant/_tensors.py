"""Which tensors of a model have rows of tokens, what they are for, and the donor's like them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from mergewise.checkpoint import (
    ChangedRef,
    Checkpoint,
    FileReader,
    TensorRef,
    changed_whole,
    head_and_embedding,
    layer_index,
    read_whole,
    tied_head,
)
from mergewise.errors import NonFiniteError, TransformError
from mergewise.vocabulary import VocabularyTensors, vocabulary_tensors

if TYPE_CHECKING:
    from torch import Tensor

Use = Literal["input", "output"]

_OUTPUT = re.compile(
    r"(.*\.)?(lm_head|embed_out|output|vocab_projector|proj_out|generator_lm_head|decoder"
    r"|predictions|head)\.(weight|bias)|(.*\.)?final_logits_bias"
)


@dataclass(frozen=True)
class TokenTensors:
    """A checkpoint's tensors with rows of tokens.

    Attributes:
        found: rows and axes.
        uses: what each is for.
        same: a stored head that is the embedding: the embedding's name by its own.
    """

    found: VocabularyTensors
    uses: dict[str, Use]
    same: dict[str, str]


def token_tensors(checkpoint: Checkpoint) -> TokenTensors:
    """The tensors with rows of tokens.

    Raises:
        TransformError: if there is none, or one seems to have a vocabulary of its own.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    found = vocabulary_tensors(shapes, checkpoint.config)
    if found is None:
        raise TransformError(f"{checkpoint.path}: has no embedding of tokens")
    if found.unclear:
        raise TransformError(
            f"{checkpoint.path}: tensor {found.unclear[0]} seems to have a vocabulary of its own, "
            "which cannot be transplanted"
        )
    tie = tied_head(list(shapes), checkpoint.config)
    uses: dict[str, Use] = {n: "output" if _OUTPUT.fullmatch(n) else "input" for n in found.axes}
    same = {tie[0]: tie[1]} if tie and {*tie} <= found.axes.keys() else {}
    return TokenTensors(found, uses, same)


def counterpart(donor: Checkpoint, use: Use) -> str:
    """The donor's tensor whose space is read: its head if it has one of its own, or embedding.

    Raises:
        TransformError: if there is none.
    """
    theirs = token_tensors(donor)
    pair = head_and_embedding(list(donor.tensors))
    if pair is not None and use == "output" and pair[0] in theirs.found.axes:
        return theirs.same.get(pair[0], pair[0])
    if pair is not None and pair[1] in theirs.found.axes:
        return pair[1]
    outside = [n for n in theirs.found.axes if layer_index(n) is None and _is_matrix(donor, n)]
    named = [n for n in outside if theirs.uses[n] == use] or outside
    if not named:
        raise TransformError(f"{donor.path}: has no embedding of tokens to learn from")
    return named[0]


def _is_matrix(checkpoint: Checkpoint, name: str) -> bool:
    return len(checkpoint.tensors[name].shape) == 2


def by_rows(checkpoint: Checkpoint, name: str, axis: int) -> Tensor:
    """A tensor as stored, as a matrix with a row for each token: [rows, the rest].

    Raises:
        TransformError: if it does not hold floating-point numbers.
        NonFiniteError: if it holds NaN or infinity.
        CheckpointError: if it cannot be read.
    """
    ref = checkpoint.tensors[name]
    value = _read(checkpoint, ref)
    if not value.is_floating_point():
        raise TransformError(f"{checkpoint.path}: tensor {name} holds {ref.dtype}; floats expected")
    if not bool(value.isfinite().all()):
        raise NonFiniteError(f"{checkpoint.path}: tensor {name} holds NaN or infinity")
    return value.movedim(axis, 0).reshape(value.shape[axis], -1).contiguous()


def _read(checkpoint: Checkpoint, ref: TensorRef) -> Tensor:
    stamps = checkpoint.stamps
    if type(ref) is TensorRef and ref.file in stamps:
        stamps = {ref.file: stamps[ref.file]}  # of a donor on the Hub, one shard is enough
    with FileReader(stamps) as reader:
        read = partial(read_whole, reader)
        value = changed_whole(ref, read) if isinstance(ref, ChangedRef) else read(ref)
        reader.verify_unchanged()
    return value
