"""Which output tensors there are, and which tensor of each model goes into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergewise.checkpoint import (
    LayerGroup,
    find_layers,
    is_pre_layer,
    layer_index,
    layer_prefix,
    renumber,
)
from mergewise.plan._model import View
from mergewise.recipe import Slice


@dataclass(frozen=True)
class Slot:
    """An output tensor.

    Attributes:
        t: its layer's place in the slice, 0 to 1; 0 outside the layers.
        inputs: its name in each source of the slice; None where that model lacks it.
    """

    name: str
    slice_: Slice
    t: float
    inputs: tuple[str | None, ...]


def place(layer: int, count: int) -> float:
    """Where a layer lies in a slice of `count`, from 0 to 1; 1 if it is the only one."""
    return layer / (count - 1) if count > 1 else 1.0


def whole_model_slots(slice_: Slice, views: Sequence[View]) -> list[Slot]:
    """Slots of a `models:` recipe: every tensor of every model under its own name."""
    names = list(dict.fromkeys(name for view in views for name in view.tensors))
    groups = {group.prefix: group for group in find_layers(names)}
    slots = []
    for name in names:
        group = groups.get(layer_prefix(name) or "")
        layer = layer_index(name)
        t = place(layer, group.count) if group and layer is not None else 0.0
        present = tuple(name if name in view.tensors else None for view in views)
        slots.append(Slot(name, slice_, t, present))
    return slots


def slice_slots(slices: Sequence[Slice], views: Sequence[Sequence[View]]) -> list[Slot]:
    """Slots of a `slices:` recipe: layers renumbered in output order.

    What stands before the layers (embeddings) comes from the first slice's sources, what stands
    after (final norm, head) from the last one's, as in mergekit.
    """
    group = max(find_layers(list(views[0][0].tensors)), key=lambda g: g.count * len(g.suffixes))
    slots = []
    for name in _outside(views[0], group):
        if is_pre_layer(name):
            slots.append(_outer(name, slices[0], views[0]))
    layers = {v.label: _suffixes(v, group) for models in views for v in models}
    offset = 0
    for slice_, models in zip(slices, views, strict=True):
        count = slice_.layers or 0
        for k in range(count):
            slots += _layer_slots(group, layers, slice_, models, k, offset + k, place(k, count))
        offset += count
    for name in _outside(views[-1], group):
        if not is_pre_layer(name):
            slots.append(_outer(name, slices[-1], views[-1]))
    return slots


def _suffixes(view: View, group: LayerGroup) -> dict[int, list[str]]:
    """What follows the number in the names of each layer, by that number."""
    found: dict[int, list[str]] = {}
    for name in view.tensors:
        if name.startswith(group.prefix):
            number, dot, suffix = name.removeprefix(group.prefix).partition(".")
            if dot and number.isascii() and number.isdigit() and str(int(number)) == number:
                found.setdefault(int(number), []).append(suffix)
    return found


def _outside(models: Sequence[View], group: LayerGroup) -> list[str]:
    names = dict.fromkeys(name for view in models for name in view.tensors)
    return [name for name in names if layer_prefix(name) != group.prefix]


def _outer(name: str, slice_: Slice, models: Sequence[View]) -> Slot:
    return Slot(name, slice_, 0.0, tuple(name if name in v.tensors else None for v in models))


def _layer_slots(
    group: LayerGroup,
    layers: Mapping[str, Mapping[int, list[str]]],
    slice_: Slice,
    models: Sequence[View],
    k: int,
    index: int,
    t: float,
) -> list[Slot]:
    places = [source.layer_range[0] + k for source in slice_.sources if source.layer_range]
    starts = [f"{group.prefix}{layer}." for layer in places]
    suffixes = dict.fromkeys(
        suffix
        for view, layer in zip(models, places, strict=True)
        for suffix in layers[view.label].get(layer, ())
    )
    slots = []
    for suffix in suffixes:
        names = [start + suffix for start in starts]
        found = tuple(n if n in v.tensors else None for n, v in zip(names, models, strict=True))
        slots.append(Slot(renumber(names[0], index), slice_, t, found))
    return slots
