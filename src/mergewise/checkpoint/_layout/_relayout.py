"""A checkpoint shown under the names that another one of its architecture uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergewise.checkpoint._joined import Piece, joined
from mergewise.checkpoint._layout._meta_model import CannotConvert, meta_model
from mergewise.checkpoint._layout._places import Layout, layout_of
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._parts import head_and_embedding, tied_head

Place = tuple[int, str, int, int]
"""Of a run of a tensor: its first element, the parameter, the element there, how many."""


def in_layout_of(
    donor: Mapping[str, TensorRef], config: Mapping[str, Any] | None, other: Checkpoint
) -> Checkpoint:
    """`other` under the names of `donor`, a model of that config.

    Tensors are renamed, packed experts taken apart or put together. Nothing is read: a tensor that
    lies elsewhere is a `TensorRef` of that place, one that is packed a `JoinedRef`. Tensors for
    which the donor has no name keep their own.

    Raises:
        CheckpointError: with the reason, if there is no conversion between the two.
    """
    model = meta_model(config)
    mine, theirs = layout_of(donor, model), layout_of(other.tensors, model)
    if not theirs.parameters:
        raise CannotConvert(f"none of its tensors is one of a {type(model).__name__}")
    places = _places(mine)
    found: dict[str, TensorRef] = {}
    used: dict[str, int] = {}
    for name, ref in donor.items():
        pieces = list(_gathered(places.get(name, ()), mine, theirs))
        for piece in pieces:
            used[piece.ref.name] = used.get(piece.ref.name, 0) + piece.count
        if pieces:
            found[name] = _made(name, ref, _merged(pieces))
    _check_used(other, used)
    for name, ref in _left(donor, config, other, used).items():
        if name in found:
            raise CannotConvert(f"both {found[name].name} and {ref.name} of it would be {name}")
        found[name] = replace(ref, name=name)
    return replace(other, tensors=found)


def _places(layout: Layout) -> dict[str, list[Place]]:
    """Where the elements of each tensor belong, in its order."""
    found: dict[str, list[Place]] = {}
    for parameter, pieces in layout.parameters.items():
        at = 0
        for piece in pieces:
            found.setdefault(piece.ref.name, []).append((piece.start, parameter, at, piece.count))
            at += piece.count
    return {name: sorted(places) for name, places in found.items()}


def _gathered(places: Sequence[Place], mine: Layout, theirs: Layout) -> Iterator[Piece]:
    """The other checkpoint's pieces of what a tensor of the donor holds."""
    for _, parameter, start, count in places:
        pieces = theirs.parameters.get(parameter, ())
        if _alone(mine.parameters[parameter]) and _alone(pieces):
            yield pieces[0]  # also one of another size, such as a larger vocabulary
        else:
            yield from _cut(pieces, start, count)


def _alone(pieces: Sequence[Piece]) -> bool:
    return len(pieces) == 1 and pieces[0].whole


def _cut(pieces: Sequence[Piece], start: int, count: int) -> Iterator[Piece]:
    """Elements `start` to `start + count` of the tensor that pieces make up."""
    at = 0
    for piece in pieces:
        low, high = max(start, at), min(start + count, at + piece.count)
        if low < high:
            yield Piece(piece.ref, piece.start + low - at, high - low)
        at += piece.count


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same elements, in as few pieces as possible."""
    found = [pieces[0]]
    for piece in pieces[1:]:
        last = found[-1]
        if piece.ref is last.ref and piece.start == last.start + last.count:
            found[-1] = Piece(last.ref, last.start, last.count + piece.count)
        else:
            found.append(piece)
    return found


def _made(name: str, mine: TensorRef, pieces: list[Piece]) -> TensorRef:
    total = sum(piece.count for piece in pieces)
    if total == mine.numel:
        return joined(name, mine.shape, pieces)
    if len(pieces) == 1 and pieces[0].whole:
        return replace(pieces[0].ref, name=name)
    raise CannotConvert(
        f"{pieces[0].ref.name} and its like have {total:,} elements, {mine.name} {mine.numel:,}"
    )


def _check_used(other: Checkpoint, used: Mapping[str, int]) -> None:
    for name, count in used.items():
        if count != other.tensors[name].numel:
            raise CannotConvert(f"{count:,} of the {other.tensors[name].numel:,} elements of {name}"
                                " are all that the other layout has a place for")  # fmt: skip


def _left(
    donor: Mapping[str, TensorRef],
    config: Mapping[str, Any] | None,
    other: Checkpoint,
    used: Mapping[str, int],
) -> dict[str, TensorRef]:
    """The other's tensors that are no part of the donor's; a head under the name of the donor's."""
    tie = tied_head(donor.keys(), dict(config or {}))
    theirs = head_and_embedding(other.tensors.keys())
    heads = {theirs[0]: tie[0]} if tie and theirs else {}
    return {heads.get(name, name): ref for name, ref in other.tensors.items() if name not in used}
