"""Which output tensors there are, and which tensor of each model goes into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergewise.checkpoint import find_layers, is_pre_layer, layer_index, layer_prefix
from mergewise.plan._model import View
from mergewise.plan._parts import Part
from mergewise.recipe import Module, Slice


@dataclass(frozen=True)
class Slot:
    """An output tensor.

    Attributes:
        t: its layer's place in the slice, 0 to 1; 0 outside the layers.
        inputs: its name in each source of the slice; None where that model lacks it.
        module: the module of the recipe that says what becomes of it.
    """

    name: str
    slice_: Slice
    t: float
    inputs: tuple[str | None, ...]
    module: Module


def place(layer: int, count: int) -> float:
    """Where a layer lies in a slice of `count`, from 0 to 1; 1 if it is the only one."""
    return layer / (count - 1) if count > 1 else 1.0


def whole_model_slots(
    module: Module, views: Sequence[View], prefixes: Sequence[tuple[str, str]] = ()
) -> list[Slot]:
    """Slots of a `models:` recipe: every tensor of every model under its own name.

    Args:
        prefixes: for each model what its names begin with, and what stands there in the output;
            two empty texts where nothing is changed.
    """
    changes = prefixes or [("", "")] * len(views)
    own = [
        {_renamed(name, *change): name for name in view.tensors}
        for view, change in zip(views, changes, strict=True)
    ]
    names = list(dict.fromkeys(name for known in own for name in known))
    groups = {group.prefix: group for group in find_layers(names)}
    slots = []
    for name in names:
        group = groups.get(layer_prefix(name) or "")
        layer = layer_index(name)
        t = place(layer, group.count) if group and layer is not None else 0.0
        present = tuple(known.get(name) for known in own)
        slots.append(Slot(name, module.slices[0], t, present, module))
    return slots


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def whole_part_slots(module: Module, parts: Sequence[Part]) -> list[Slot]:
    """Slots of a module taken whole: every tensor of it, in the models of the first slice."""
    slice_ = module.slices[0]
    slots = [_outer(name, slice_, parts, module) for name in _loose(parts)]
    count = max((part.count for part in parts), default=0)
    numbers = sorted({number for part in parts for number in part.layers})
    for number in numbers:
        t = place(number, count) if number < count else 1.0
        slots += _layer(module, slice_, parts, [number] * len(parts), number, t)
    return slots


def slice_slots(module: Module, parts: Sequence[Sequence[Part]]) -> list[Slot]:
    """Slots of a module put together from slices: layers renumbered in output order.

    What stands before the layers (embeddings) comes from the first slice's sources, what stands
    after (final norm, head) from the last one's, as in mergekit.
    """
    slices = module.slices
    first = [name for name in _loose(parts[0]) if _is_before(name)]
    slots = [_outer(name, slices[0], parts[0], module) for name in first]
    for index, (slice_, its, k) in enumerate(output_layers(slices, parts)):
        starts = [source.layer_range[0] + k for source in slice_.sources if source.layer_range]
        slots += _layer(module, slice_, its, starts, index, place(k, slice_.layers or 0))
    last = [name for name in _loose(parts[-1]) if not _is_before(name)]
    return slots + [_outer(name, slices[-1], parts[-1], module) for name in last]


def output_layers(
    slices: Sequence[Slice], parts: Sequence[Sequence[Part]]
) -> Iterator[tuple[Slice, Sequence[Part], int]]:
    """For each output layer its slice, the parts of that slice's sources, its number in it."""
    for slice_, its in zip(slices, parts, strict=True):
        for k in range(slice_.layers or 0):
            yield slice_, its, k


def _is_before(name: str) -> bool:
    # a number outside the sliced layers: what the first layer holds for all of them (T5)
    return is_pre_layer(name) or "relative_attention_bias" in name


def _loose(parts: Sequence[Part]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.loose))


def _outer(name: str, slice_: Slice, parts: Sequence[Part], module: Module) -> Slot:
    return Slot(name, slice_, 0.0, tuple(part.loose.get(name) for part in parts), module)


def _layer(
    module: Module,
    slice_: Slice,
    parts: Sequence[Part],
    numbers: Sequence[int],
    index: int,
    t: float,
) -> list[Slot]:
    held = [part.layers.get(number, {}) for part, number in zip(parts, numbers, strict=True)]
    suffixes = dict.fromkeys(suffix for names in held for suffix in names)
    prefix = parts[0].prefix
    return [
        Slot(f"{prefix}{index}{suffix}", slice_, t, tuple(n.get(suffix) for n in held), module)
        for suffix in suffixes
    ]
