"""Parameters of one tensor after the other, worked out once for all to which the same applies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mergewise.methods import Method
from mergewise.plan._slots import Slot
from mergewise.recipe import Module, Slice, Stage, settings_for

Values = tuple[dict[str, Any], dict[str, Any]]


class Parameters:
    """Parameters by tensor; those of alike tensors are the same objects, not to be changed.

    A value depends on the slice, on which filters a name matches, on which models have the
    tensor, and in a gradient on the layer's place. Plans of mixtures of experts have ten
    thousands of tensors and a handful of such cases.
    """

    def __init__(self, stage: Stage, method: Method) -> None:
        self._stage = stage
        self._method = method
        self._known: dict[Hashable, Values] = {}
        self._looks: dict[int, tuple[frozenset[str], bool]] = {}

    def of(self, slot: Slot, names: Sequence[str | None]) -> Values:
        """Values and origins; see `settings_for`, whose errors it raises."""
        filters, graded = self._look(slot.module, slot.slice_)
        hits = tuple(
            [text in name for name in (slot.name, *names) if name is not None]
            for text in sorted(filters)
        )
        present = tuple(name is not None for name in names)
        key = (id(slot.module), id(slot.slice_), present, str(hits), slot.t if graded else None)
        if key not in self._known:
            self._known[key] = settings_for(
                self._stage, self._method, slot.module, slot.slice_, slot.t, slot.name, names
            )
        return self._known[key]

    def _look(self, module: Module, slice_: Slice) -> tuple[frozenset[str], bool]:
        """The filters that may apply in a slice, and whether there are gradients."""
        if id(slice_) not in self._looks:
            levels = [source.parameters for source in slice_.sources]
            levels += [slice_.parameters, module.parameters, self._stage.parameters]
            conditions = [c for level in levels for s in level.values() for c in s.conditions]
            filters = frozenset(c.filter for c in conditions if c.filter is not None)
            graded = any(isinstance(c.value, tuple) for c in conditions)
            self._looks[id(slice_)] = (filters, graded)
        return self._looks[id(slice_)]
