"""Numbers of tensors as numbers of cells, for a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergewise.guides._base import Expert, Map
from mergewise.guides._cells import Cell


def tensor_map(
    expert: Expert, what: str, values: Mapping[str, float], cells: Sequence[Cell]
) -> Map:
    """The mean over each cell's tensors; cells without values are left out."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        known = [values[tensor] for tensor in cell.tensors if tensor in values]
        if known:
            found.setdefault(cell.place, {})[cell.short] = sum(known) / len(known)
    return Map(expert.label, what, found)
