"""Cells: one component of one layer, recognised from names and shapes, in any architecture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.guides._base import Expert, Map
from mergewise.plan import StagePlan


@dataclass(frozen=True)
class Cell:
    """The matrices of one component in one layer: one, or all experts of a mixture.

    Attributes:
        component: their name, ``*`` in place of numbers: ``model.layers.*.mlp.up_proj.weight``.
        layer: the layer's number.
        tensors: their names.
        elements: of all of them.
    """

    component: str
    layer: int
    tensors: tuple[str, ...]
    elements: int

    @property
    def place(self) -> str:
        """The layer's name, such as ``model.layers.3``."""
        return f"{layer_prefix(self.tensors[0])}{self.layer}"

    @property
    def short(self) -> str:
        """The component without what all of a layer share: ``mlp.up_proj``."""
        prefix = layer_prefix(self.tensors[0]) or ""
        return self.component.removeprefix(f"{prefix}*.").removesuffix(".weight")


def find_cells(stage: StagePlan) -> list[Cell]:
    """Cells of all tensors that are merged, are in a layer and have two axes or more.

    In order of layers. The experts of a mixture are one cell: expert 3 of one layer has nothing
    to do with expert 3 of the next.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for name, tensor in stage.tensors.items():
        layer = layer_index(name)
        if tensor.fate == "merge" and layer is not None and len(tensor.meta.shape) > 1:
            found.setdefault((_component(name), layer), []).append(name)
    cells = [
        Cell(component, layer, tuple(sorted(names)), _elements(stage, names))
        for (component, layer), names in found.items()
    ]
    return sorted(cells, key=lambda cell: (layer_prefix(cell.tensors[0]), cell.layer, cell.short))


def _component(name: str) -> str:
    prefix = layer_prefix(name) or ""
    return prefix + re.sub(r"(?<=\.)\d+(?=\.|$)", "*", "." + name.removeprefix(prefix))[1:]


def _elements(stage: StagePlan, names: list[str]) -> int:
    return sum(math.prod(stage.tensors[name].meta.shape) for name in names)


def map_of(expert: Expert, what: str, values: Mapping[Cell, float]) -> Map:
    """Numbers of cells, for a picture."""
    found: dict[str, dict[str, float]] = {}
    for cell, value in values.items():
        found.setdefault(cell.place, {})[cell.short] = value
    return Map(expert.label, what, found)


def tensor_map(
    expert: Expert, what: str, values: Mapping[str, float], cells: Sequence[Cell]
) -> Map:
    """Numbers of tensors, for a picture: each cell's mean; those without values are left out."""
    known = {cell: [values[name] for name in cell.tensors if name in values] for cell in cells}
    return map_of(expert, what, {c: sum(own) / len(own) for c, own in known.items() if own})
