"""Where a checkpoint keeps what a model of `transformers` calls a parameter.

`transformers` renames tensors when it loads a model and packs the experts of a mixture into one
parameter, so a checkpoint may be in the names of its first release, in those in memory, or in
others in between. All of them load. A `Layout` is found by the library's own rules: names go
through its renaming, and small marked tensors through its operations.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint._joined import Piece
from mergewise.checkpoint._layout._meta_model import CannotConvert
from mergewise.checkpoint._model import TensorRef

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, TensorRef]
_LIMIT = 1 << 24
"""Rows of all tensors that are packed into one parameter; marks of more would fill the memory."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint's tensors by parameter.

    Attributes:
        parameters: each one's pieces in order, together all of its elements.
        unknown: tensors that are no part of a parameter.
    """

    parameters: Mapping[str, tuple[Piece, ...]]
    unknown: tuple[str, ...]


def layout_of(tensors: Tensors, model: Any) -> Layout:
    """How `tensors` become the parameters of `model`, which is from `meta_model`.

    Raises:
        CannotConvert: if `transformers` is too old, or its operations do more than move rows.
    """
    known = dict(model.state_dict())
    rules = _rules(model)
    alone: dict[str, list[str]] = defaultdict(list)
    packed: dict[tuple[int, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    unknown = []
    for name in sorted(tensors, key=rules.order):
        parameter, pattern = rules.renamed(name, known)
        if parameter not in known:
            unknown.append(name)
        elif pattern is None:
            alone[parameter].append(name)
        else:
            packed[rules.converter(pattern), parameter][pattern].append(name)
    found: dict[str, tuple[Piece, ...]] = {
        parameter: (Piece(tensors[names[0]], 0, tensors[names[0]].numel),)
        for parameter, names in alone.items()
    }
    unknown += [name for names in alone.values() for name in names[1:]]
    for (index, parameter), sources in packed.items():
        found |= _packed(tensors, sources, rules.converters[index], parameter, model)
    return Layout(found, tuple(unknown))


@dataclass(frozen=True)
class _Rules:
    """The library's renaming of one model's tensors."""

    renamings: list[Any]
    converters: list[Any]
    prefix: str
    rename: Any
    order: Any

    def renamed(self, name: str, known: Mapping[str, Any]) -> tuple[str, str | None]:
        """The parameter a tensor belongs to, and the pattern by which it is to be converted."""
        found, pattern = self.rename(name, self.renamings, self.converters, self.prefix, known)
        if found not in known and name in known:
            found, pattern = self.rename(name, [], [], self.prefix, known)
        return str(found), pattern

    def converter(self, pattern: str) -> int:
        return next(i for i, c in enumerate(self.converters) if pattern in c.source_patterns)


def _rules(model: Any) -> _Rules:
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping

        entries = get_model_conversion_mapping(model)
        renamings = [e for e in entries if isinstance(e, loading.WeightRenaming)]
        converters = [e for e in entries if isinstance(e, loading.WeightConverter)]
        return _Rules(
            renamings, converters, model.base_model_prefix, loading.rename_source_key,
            loading.dot_natural_key,
        )  # fmt: skip
    except (ImportError, AttributeError):
        raise CannotConvert(
            "its names can be converted by transformers 5 or later, and an older one is installed"
        ) from None


def _packed(
    tensors: Tensors, sources: Mapping[str, list[str]], rule: Any, parameter: str, model: Any
) -> dict[str, tuple[Piece, ...]]:
    """The pieces of the parameters that one operation of the library makes of some tensors."""
    names = [name for each in sources.values() for name in each]
    refs = [tensors[name] for name in names]
    widths = {ref.shape[-1] if len(ref.shape) > 1 else 1 for ref in refs}
    if len(widths) > 1 or sum(ref.numel for ref in refs) // max(1, min(widths)) > _LIMIT:
        raise CannotConvert(f"{names[0]} and its like are of different widths, or too many")
    [width] = widths
    starts = _starts(refs, width)
    rule = rule.copy(rule.source_patterns.copy(), rule.target_patterns.copy(),
                     operations=rule.operations)  # fmt: skip
    index = {name: i for i, name in enumerate(names)}
    for pattern, each in sources.items():
        for name in each:
            rule.add_tensor(
                parameter, name, pattern, _marked(refs[index[name]], starts, index[name])
            )
    try:
        made = rule.convert(parameter, model=model, config=model.config)
    except Exception as error:
        raise CannotConvert(f"{names[0]}: {type(error).__name__}: {error}") from None
    known = model.state_dict()
    return {
        name: _pieces(marks[0] if isinstance(marks, list) else marks, refs, starts, width,
                      known[name], name)
        for name, marks in made.items()
        if name in known
    }  # fmt: skip


def _starts(refs: list[TensorRef], width: int) -> list[int]:
    starts = [0]
    for ref in refs:
        starts.append(starts[-1] + ref.numel // max(1, width))
    return starts


def _marked(ref: TensorRef, starts: list[int], i: int) -> Tensor:
    """Row numbers in the shape of a tensor whose last axis is cut to one element."""
    shape = (*ref.shape[:-1], 1) if len(ref.shape) > 1 else ref.shape
    return torch.arange(starts[i], starts[i + 1]).reshape(shape)


def _pieces(
    marks: Tensor, refs: list[TensorRef], starts: list[int], width: int, wanted: Tensor, name: str
) -> tuple[Piece, ...]:
    shape = (*marks.shape[:-1], width) if width > 1 else tuple(marks.shape)
    if shape != tuple(wanted.shape) or marks.numel() * width != math.prod(wanted.shape):
        raise CannotConvert(f"{name}: {refs[0].name} and its like do not make its shape")
    flat = marks.flatten()
    cuts = (torch.nonzero(flat[1:] != flat[:-1] + 1).flatten() + 1).tolist()
    if len(cuts) > 4 * len(refs) + 64:
        raise CannotConvert(f"{name}: its rows are in another order than in {refs[0].name}")
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(flat)], strict=True):
        found += _split(int(flat[begin]), end - begin, refs, starts, width)
    return tuple(found)


def _split(
    first: int, rows: int, refs: list[TensorRef], starts: list[int], width: int
) -> list[Piece]:
    """A run of marks, cut where one tensor ends and the next begins."""
    found = []
    end = first + rows
    for i in range(bisect_right(starts, first) - 1, len(refs)):
        low, high = max(first, starts[i]), min(end, starts[i + 1])
        if low < high:
            found.append(Piece(refs[i], (low - starts[i]) * width, (high - low) * width))
        if starts[i + 1] >= end:
            break
    return found
