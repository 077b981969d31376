"""A merge plan as people read it, and as plain values for JSON."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._units import show_bytes
from mergewise.checkpoint import main_layers
from mergewise.engine import estimate, processors
from mergewise.plan import (
    Alike,
    MergePlan,
    StagePlan,
    TensorPlan,
    View,
    alike_tensors,
    only_some_have,
    role_of,
    tensor_dict,
)
from mergewise.report.parameters import Spread, spread
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import count, show_count, show_shape

if TYPE_CHECKING:
    from rich.console import RenderableType


def plan_page(plan: MergePlan, *, every: bool = False) -> list[RenderableType]:
    """The whole plan; tensors alike share a row unless `every`."""
    page: list[RenderableType] = [text(_headline(plan), "bold"), indented(facts(_facts(plan)))]
    for stage in plan.stages:
        page += _stage(plan, stage, every)
    return page


def plan_dict(plan: MergePlan) -> dict[str, Any]:
    """The whole plan as plain values."""
    costs = Costs.of(plan)
    config = plan.output.donor.config or {}
    return {
        "recipe": plan.recipe.path,
        "digest": plan.digest(),
        "seeds": plan.seeds,
        "output": {
            "architectures": config.get("architectures"),
            "layers": _layers(plan),
            "tensors": len(plan.output.tensors),
            "parameters": plan.elements,
            "config_from": plan.output.donor.label,
        },
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_write,
        "free_disk": {"folder": costs.folder, "bytes": costs.free},
        "peak_memory": {str(workers): size for workers, size in costs.peaks.items()},
        "warnings": list(plan.warnings),
        "stages": [_stage_dict(stage) for stage in plan.stages],
    }


@dataclass(frozen=True)
class Costs:
    """What a merge takes beside its inputs; bytes throughout.

    Attributes:
        peaks: estimated peak memory by number of workers.
        largest: the tensor that decides it.
        folder: where `free` was looked up: the current folder.
    """

    peaks: dict[int, int]
    largest: str
    folder: str
    free: int

    @classmethod
    def of(cls, plan: MergePlan) -> Costs:
        memory = estimate(plan)
        most = processors()
        wanted = sorted({n for n in (1, 2, 4, 8, 16) if n < most} | {most})
        here = Path.cwd()
        peaks = {workers: memory.peak(workers) for workers in wanted}
        return cls(peaks, memory.largest, str(here), shutil.disk_usage(here).free)


def _headline(plan: MergePlan) -> str:
    methods = ", then ".join(stage.stage.method for stage in plan.stages)
    architecture = (plan.output.donor.config or {}).get("architectures")
    named = architecture[0] if isinstance(architecture, list) and architecture else "a model"
    return f"{methods} → {named}, {show_count(plan.elements)} parameters"


def _layers(plan: MergePlan) -> int | None:
    group = main_layers(plan.output.tensors)
    return group.count if group else None


def _facts(plan: MergePlan) -> list[tuple[str, str]]:
    costs = Costs.of(plan)
    layers = _layers(plan)
    shape = count(len(plan.output.tensors), "tensor")
    peaks = [f"{show_bytes(size)} with {count(n, 'worker')}" for n, size in costs.peaks.items()]
    return [
        ("output", f"{shape} in {count(layers, 'layer')}" if layers else shape),
        ("config from", _config_from(plan)),
        ("reads", show_bytes(plan.bytes_read)),
        ("writes", f"{_result(plan)}; {show_bytes(costs.free)} free here"),
        ("memory", f"about {', '.join(peaks)}"),
        ("seed", plan.seeds_in_words),
    ]


def _result(plan: MergePlan) -> str:
    form = plan.recipe.output.makes
    if form is None:
        return show_bytes(plan.bytes_write)
    limits = [f"{key} {value}" for key, value in (("rank", form.rank), ("energy", form.energy))
              if value is not None]  # fmt: skip
    return f"an {form.name}" + (f" ({', '.join(limits)})" if limits else "")


def _config_from(plan: MergePlan) -> str:
    vocabulary = plan.output.vocabulary
    with_tokenizer = "with the tokenizer below" if vocabulary else "with its tokenizer"
    return f"{plan.output.donor.label}, {with_tokenizer}"


def _stage(plan: MergePlan, stage: StagePlan, every: bool) -> list[RenderableType]:
    merged = [t for t in stage.tensors.values() if t.fate == "merge"]
    found = spread(merged)
    named = len(plan.stages) > 1
    title = f"{stage.label}: {stage.stage.method}" if named else "Models"
    page: list[RenderableType] = [text(title, "bold"), indented(_models(stage, found))]
    if stage.vocabulary and stage.vocabulary.said:
        page += [text("Vocabulary", "bold"), indented(facts(stage.vocabulary.said))]
    if files := _files(stage):
        page += [text("Evidence", "bold"), indented(_evidence(plan, files, merged))]
    if found.shared:
        page += [text("Parameters of every tensor", "bold"), indented(facts(found.shared))]
    groups = alike_tensors(stage)
    rows = [Alike(name, (t,)) for name, t in stage.tensors.items()] if every else groups
    page += [text("Tensors", "bold"), indented(_tensors(rows, found))]
    return page + _oddities(stage, groups)


def _models(stage: StagePlan, found: Spread) -> RenderableType:
    names = list(dict.fromkeys(name for name, _ in found.models))
    rows = []
    for view in stage.views:
        cells = [found.models.get((name, view.label), "") for name in names]
        rows.append([view.label, role_of(stage, view.label), *_size(view), *cells])
    return table(["model", "role", "dtype", "parameters", *names], rows, ["parameters"])


def _size(view: View) -> tuple[str, str]:
    types = dict.fromkeys(meta.dtype for meta in view.tensors.values())
    packed = "".join(f" ({kind})" for kind in _stored(view))
    return " ".join(types) + packed, show_count(
        sum(meta.elements for meta in view.tensors.values())
    )


def _stored(view: View) -> list[str]:
    """What quantised tensors of the model's files are stored as."""
    refs = view.checkpoint.tensors.values() if view.checkpoint else ()
    return sorted({ref.stored_as for ref in refs if ref.stored_as})


def _files(stage: StagePlan) -> list[tuple[str, str]]:
    """(model, evidence file), as the recipe calls them."""
    slices = [slice_ for module in stage.stage.modules for slice_ in module.slices]
    sources = [source for slice_ in slices for source in slice_.sources]
    pairs = ((str(source.model), file) for source in sources for file in source.evidence)
    return list(dict.fromkeys(pairs))


def _evidence(
    plan: MergePlan, files: Sequence[tuple[str, str]], merged: Sequence[TensorPlan]
) -> RenderableType:
    rows = []
    for model, file in files:
        known = plan.evidence[file]
        data = ", ".join(str(part.get("data")) for part in known.record.parts)
        uses = [t for t in merged if known.path in {s.file for e in t.statistics for s in e}]
        used = f"{len(uses)} of {len(merged)}"
        rows.append([model, file, ", ".join(known.statistics), data, used])
    headers = ["model", "file", "statistics", "data", "tensors that use it"]
    return table(headers, rows, {"tensors that use it"})


def _tensors(groups: Sequence[Alike[TensorPlan]], found: Spread) -> RenderableType:
    headers = ["tensor", "number", "fate", "dtype", "shape", *found.varying]
    return table(headers, [_row(group, found) for group in groups], ["number"])


def _row(group: Alike[TensorPlan], found: Spread) -> list[str]:
    first, number = group.items[0], len(group.items)
    cells = [found.of(name, group.items) for name in found.varying]
    shape = show_shape(first.meta.shape)
    return [group.pattern, f"{number:,}", first.fate, first.meta.dtype, shape, *cells]


def _oddities(stage: StagePlan, groups: Sequence[Alike[TensorPlan]]) -> list[RenderableType]:
    """What is not simply merged, and why."""
    told = [(g.pattern, g.items[0]) for g in groups if g.items[0].reason]
    copied = [(name, first.reason) for name, first in told if first.fate == "copy"]
    pooled = [(name, first.reason) for name, first in told if first.fate == "pool"]
    otherwise = [(name, first.reason) for name, first in told if first.fate == "merge"]
    partial = [
        (name, f"not in {', '.join(models)}")
        for name, models in only_some_have(stage).items()
        if stage.tensors[name].fate == "merge"
    ]
    page: list[RenderableType] = []
    for title, rows in (
        ("Copied", copied),
        ("Pooled", pooled),
        ("Merged otherwise", otherwise),
        ("Merged of fewer models", partial),
        ("Not written", list(stage.omitted.items())),
    ):
        if rows:
            page += [text(title, "bold"), indented(facts(rows))]
    return page


def _stage_dict(stage: StagePlan) -> dict[str, Any]:
    return {
        "name": stage.label,
        "method": stage.stage.method,
        "dtype": stage.stage.dtype,
        "out_dtype": stage.stage.out_dtype,
        "seed": stage.stage.seed or 0,
        "models": [_model_dict(stage, view) for view in stage.views],
        "evidence": [{"model": model, "file": file} for model, file in _files(stage)],
        "tensors": [tensor_dict(stage, name) for name in stage.tensors],
        "omitted": dict(stage.omitted),
        "only_some_models_have": only_some_have(stage),
        "vocabulary": _vocabulary(stage),
        "warnings": list(stage.warnings),
    }


def _vocabulary(stage: StagePlan) -> dict[str, Any] | None:
    """The output's vocabulary, if it is not simply its donor's."""
    found = stage.vocabulary
    if found is None:
        return None
    return {
        "rows": found.rows,
        "tokens": len(found.tokenizer.tokens),
        "new_tokens": found.tokenizer.put_in,
        "models": {label: dict(rows.counts) for label, rows in found.maps.items()},
        "told": [f"{of}: {said}" for of, said in found.said],
    }


def _model_dict(stage: StagePlan, view: View) -> dict[str, Any]:
    return {
        "model": view.label,
        "role": role_of(stage, view.label),
        "stage": view.stage is not None,
        "folder": str(view.folder),
        "dtypes": sorted({meta.dtype for meta in view.tensors.values()}),
        "tensors": len(view.tensors),
        "parameters": sum(meta.elements for meta in view.tensors.values()),
        "bytes": view.checkpoint.total_bytes
        if view.checkpoint
        else sum(meta.nbytes for meta in view.tensors.values()),
        **({"stored_as": _stored(view)} if _stored(view) else {}),
    }
