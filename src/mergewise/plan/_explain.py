"""A plan for people: like tensors as one, and one tensor with all that is known of it."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mergewise.checkpoint import ChangedRef, LowRank, Scaled, Shifted
from mergewise.methods import get_method
from mergewise.plan._batch_norm import formula
from mergewise.plan._model import Input, MergePlan, StagePlan, TensorPlan

T = TypeVar("T")


@dataclass(frozen=True)
class Alike(Generic[T]):
    """Tensors whose names differ in numbers alone.

    Attributes:
        pattern: the name with its numbers as ranges: ``model.layers.{0-3}.mlp.up_proj.weight``.
        items: never empty; in the order of their numbers.
    """

    pattern: str
    items: tuple[T, ...]


def collapse(
    items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]
) -> list[Alike[T]]:
    """Gather items whose names differ in numbers alone and whose `key` is the same."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        template = tuple("#" if _is_number(p) else p for p in name(item).split("."))
        groups.setdefault((template, key(item)), []).append(item)
    return [
        Alike(
            _pattern([name(i) for i in group]), tuple(sorted(group, key=lambda i: _order(name(i))))
        )
        for group in groups.values()
    ]


def _order(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if _is_number(part)]


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _pattern(names: Sequence[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(_numbers(set(parts)) for parts in columns)


def _numbers(parts: set[str]) -> str:
    """The part of the name if there is one, else ``{0-3,7}``."""
    if len(parts) == 1:
        return next(iter(parts))
    runs: list[list[int]] = []
    for number in sorted({int(part) for part in parts}):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def alike_tensors(stage: StagePlan) -> list[Alike[TensorPlan]]:
    """A stage's tensors, those of equal fate, type, shape and sources together."""

    def key(tensor: TensorPlan) -> Hashable:
        sources = tuple(item.view.label for item in tensor.inputs)
        return (tensor.fate, tensor.meta.dtype, tensor.meta.shape, tensor.reason, sources)

    return collapse(stage.tensors.values(), lambda t: t.meta.name, key)


def only_some_have(stage: StagePlan) -> dict[str, list[str]]:
    """Output tensors that not every model has, and the models that lack them.

    Only for a stage that merges whole models: slices and modules name what they take.
    """
    if stage.sliced or stage.stage.form == "modules":
        return {}
    found = {}
    for name, tensor in stage.tensors.items():
        used = {item.view.label for item in tensor.inputs}
        lack = [v.label for v in stage.views if name not in v.tensors and v.label not in used]
        if lack:
            found[name] = lack
    return found


def find_tensors(plan: MergePlan, query: str) -> list[tuple[StagePlan, str]]:
    """Output tensors, and omitted ones, that `query` means, over all stages.

    Args:
        plan: the plan.
        query: a name, a glob (``*q_proj*``), or a part of exactly one name.

    Returns:
        (stage, name) pairs; several names if a part of several was given; [] if nothing matches.
    """
    named = [(s, name) for s in plan.stages for name in (*s.tensors, *s.omitted)]
    exact = [pair for pair in named if pair[1] == query]
    if exact:
        return exact
    if any(c in query for c in "*?["):
        return [pair for pair in named if fnmatch.fnmatchcase(pair[1], query)]
    return [pair for pair in named if query in pair[1]]


def closest_tensors(plan: MergePlan, query: str) -> list[str]:
    """Up to three names like `query`, for a message."""
    names = dict.fromkeys(n for s in plan.stages for n in (*s.tensors, *s.omitted))
    return difflib.get_close_matches(query, names, n=3, cutoff=0.6)


def role_of(stage: StagePlan, label: str) -> str:
    """``base``, ``expert``, or for a method without a base, ``model``."""
    if get_method(stage.stage.method).base == "ignored":
        return "model"
    return "base" if label == str(stage.stage.base_model) else "expert"


def tensor_dict(stage: StagePlan, name: str) -> dict[str, Any]:
    """Everything about one output tensor as plain values, ready for JSON."""
    if name in stage.omitted:
        reason = stage.omitted[name]
        return {"name": name, "stage": stage.label, "fate": "omitted", "reason": reason}
    tensor = stage.tensors[name]
    merged = tensor.fate == "merge"
    return {
        "name": name,
        "stage": stage.label,
        "fate": tensor.fate,
        "reason": tensor.reason or None,
        "method": stage.stage.method if merged else None,
        **({"formula": formula(tensor)} if tensor.fate == "pool" else {}),
        "dtype": tensor.meta.dtype,
        "shape": list(tensor.meta.shape),
        "bytes": tensor.meta.nbytes,
        "inputs_rounded_to": tensor.in_dtype,
        "sources": [_source(stage, tensor, item) for item in tensor.inputs],
        "parameters": {p: _parameter(tensor, p) for p in tensor.values},
        "statistics": [
            {"file": str(known.file), "sum": known.ref.name, "over": known.count}
            for each in tensor.statistics
            for known in each
        ],
    }


def _source(stage: StagePlan, tensor: TensorPlan, item: Input) -> dict[str, Any]:
    ref = item.view.ref(item.meta.name)
    role = "source" if tensor.fate == "copy" else role_of(stage, item.view.label)
    return {
        "model": item.view.label,
        "role": role,
        "tensor": item.meta.name,
        "dtype": item.meta.dtype,
        "shape": list(item.meta.shape),
        "file": str(ref.file) if ref else None,
        **({"stored_as": ref.stored_as} if ref and ref.stored_as else {}),
        **({"adapter": _adapter(ref)} if isinstance(ref, ChangedRef) else {}),
    }


def _adapter(ref: ChangedRef) -> dict[str, Any]:
    change = ref.change
    kind = {LowRank: "LoRA", Scaled: "IA3", Shifted: "bias"}[type(change)]
    if isinstance(change, LowRank):
        kind = "DoRA" if change.magnitude else "AdaLoRA" if change.middle else kind
        return {
            "kind": kind,
            "rank": change.rank,
            "scale": change.scale,
            "file": str(change.a.file),
        }
    scale = {"scale": change.scale} if isinstance(change, Shifted) else {}
    return {"kind": kind, **scale, "file": str(change.by.file)}


def _parameter(tensor: TensorPlan, name: str) -> Any:
    value, origin = tensor.values[name], tensor.origins[name]
    if not isinstance(origin, list):
        return {"value": value, "origin": origin}
    return [
        {"model": item.view.label, "value": v, "origin": o}
        for item, v, o in zip(tensor.experts, value, origin, strict=True)
    ]
