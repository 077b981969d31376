"""A checkpoint at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._units import show_bytes
from mergewise.plan import Alike, collapse
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import count, show_count, show_shape

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergewise.checkpoint import Summary, TensorSummary


def checkpoint_page(summary: Summary, *, every: bool = False) -> list[RenderableType]:
    """What a checkpoint is and holds; layers alike share a row unless `every`."""
    return [
        text(summary.path, "bold"),
        indented(facts(_facts(summary))),
        _tensors(summary.tensors, every),
    ]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    kind = f" ({summary.model_type})" if summary.model_type else ""
    tied = f"{summary.tied[0]} is {summary.tied[1]}" if summary.tied else "not tied"
    layers = [
        f"{group.prefix}*: {count(group.count, 'layer')}, {count(group.tensors, 'tensor')}"
        + ("" if group.complete else ", not all alike")
        for group in summary.layers
    ]
    types = [f"{dtype} {show_count(number)}" for dtype, number in summary.dtypes.items()]
    stored = [f"{kind} {show_bytes(size)}" for kind, size in summary.stored.items()]
    return [
        ("architecture", (summary.architecture or "not stated") + kind),
        ("parameters", f"{summary.parameters:,}"),
        ("size", f"{show_bytes(summary.bytes)} in {count(len(summary.files), 'file')}"),
        ("types", ", ".join(types) or "none"),
        *([("quantised", f"{', '.join(stored)}; read as above")] if stored else []),
        ("layers", "; ".join(layers) or "none found"),
        ("output head", tied),
    ]


def _tensors(tensors: Sequence[TensorSummary], every: bool) -> RenderableType:
    if every:
        rows = [[t.name, _type(t), show_shape(t.shape), f"{t.bytes:,}", t.file] for t in tensors]
        return table(["tensor", "dtype", "shape", "bytes", "file"], rows, ["bytes"])
    groups = collapse(tensors, lambda t: t.name, lambda t: (_type(t), t.shape))
    headers = ["tensor", "number", "dtype", "shape", "parameters"]
    return table(headers, map(_row, groups), ["number", "parameters"])


def _row(group: Alike[TensorSummary]) -> list[str]:
    first, number = group.items[0], len(group.items)
    parameters = show_count(first.parameters * number)
    return [group.pattern, f"{number:,}", _type(first), show_shape(first.shape), parameters]


def _type(tensor: TensorSummary) -> str:
    return f"{tensor.stored_as} as {tensor.dtype}" if tensor.stored_as else tensor.dtype
