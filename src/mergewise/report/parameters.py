"""How a method's parameters are spread over tensors and models: what to show once, what in rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergewise.plan import TensorPlan
from mergewise.report.text import show_range, show_value


@dataclass(frozen=True)
class Spread:
    """Parameters of one stage's merged tensors.

    Attributes:
        shared: (name, value) of those that all tensors and models share; defaults in one line.
        models: value or range by (parameter, model), for per-model ones.
        varying: names of those that differ between tensors.
    """

    shared: list[tuple[str, str]] = field(default_factory=list)
    models: dict[tuple[str, str], str] = field(default_factory=dict)
    varying: list[str] = field(default_factory=list)

    def of(self, name: str, tensors: Iterable[TensorPlan]) -> str:
        """The values of a varying parameter, in the order of tensors; nothing for copied ones.

        Models that differ are separated by semicolons, in the order of the models.
        """
        values = [t.values[name] for t in tensors if name in t.values]
        if not values or not isinstance(values[0], list):
            return show_range(values)
        ranges = [show_range(of_model) for of_model in zip(*values, strict=True)]
        return ranges[0] if len(set(ranges)) == 1 else "; ".join(ranges)


def spread(tensors: Sequence[TensorPlan]) -> Spread:
    """Look through all merged tensors of a stage."""
    found = Spread()
    if not tensors:
        return found
    defaults = []
    for name in tensors[0].values:
        values = {_hashable(t.values[name]) for t in tensors}
        if _is_default(tensors, name):
            defaults.append(f"{name} {_default(tensors[0].values[name])}")
            continue
        if isinstance(tensors[0].values[name], list):
            _per_model(found, tensors, name)
        elif len(values) == 1:
            found.shared.append((name, show_range(values)))
        if len(values) > 1:
            found.varying.append(name)
    if defaults:
        found.shared.append(("by default", ", ".join(defaults)))
    return found


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _default(value: Any) -> str:
    return show_value(value[0] if isinstance(value, list) else value)


def _is_default(tensors: Sequence[TensorPlan], name: str) -> bool:
    origins = [t.origins[name] for t in tensors]
    flat = [o for origin in origins for o in (origin if isinstance(origin, list) else [origin])]
    return all(origin.startswith("default of") for origin in flat)


def _per_model(found: Spread, tensors: Sequence[TensorPlan], name: str) -> None:
    values: dict[str, dict[Any, None]] = {}
    for tensor in tensors:
        for item, value in zip(tensor.experts, tensor.values[name], strict=True):
            values.setdefault(item.view.label, {})[value] = None
    for label, distinct in values.items():
        found.models[name, label] = show_range(distinct)
