"""Random statistics for methods that read evidence: a function of each model's weights alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergewise.evidence.statistics._file import (
    Record,
    StatisticRecord,
    WrittenSum,
    key_of,
    write_evidence,
)
from mergewise.methods import Method, Need, Settings

State = Mapping[str, Tensor]


def evidence_for(
    method: Method, experts: Sequence[State], given: Mapping[str, Any] | None = None
) -> list[dict[str, Any]] | None:
    """One mapping a model, as `merge_state_dicts` takes them; None if the method reads none.

    With the parameters `given`, or else with any choice of them.
    """
    needs = [need for need in needs_with(method, given) if need.of == "experts"]
    if not needs:
        return None
    return [{need.statistic: _means(need, model) for need in needs} for model in experts]


def base_evidence_for(
    method: Method, base: State | None, given: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The base's, for methods that read statistics of the base."""
    needs = [need for need in needs_with(method, given) if need.of == "base"]
    if not needs or base is None:
        return None
    return {need.statistic: _means(need, base) for need in needs}


def needs_with(method: Method, given: Mapping[str, Any] | None) -> Sequence[Need]:
    if given is None:
        return every_need(method)
    defaults = {name: param.default for name, param in method.params.items()}
    return method.needs(Settings({**defaults, **given}))


def every_need(method: Method) -> list[Need]:
    """What a method reads at its defaults, or with any one choice made otherwise."""
    defaults = {name: param.default for name, param in method.params.items()}
    choices = {n: p.choices or (True,) * (p.kind is bool) for n, p in method.params.items()}
    changed = [{name: choice} for name, each in choices.items() for choice in each]
    found = [method.needs(Settings({**defaults, **change})) for change in ({}, *changed)]
    return list(dict.fromkeys(need for needs in found for need in needs))


def _means(need: Need, model: State) -> dict[str, Tensor]:
    floats = {name: t for name, t in model.items() if t.is_floating_point()}
    if need.per not in ("element", "spread"):
        axes = (1, 2, 4) if need.vectors else (2, 4)
        floats = {name: t for name, t in floats.items() if t.dim() in axes and t.numel()}
    return {name: _mean(need, tensor) for name, tensor in floats.items()}


def _mean(need: Need, tensor: Tensor) -> Tensor:
    seed = int(tensor.double().abs().sum().item() * 1e4) % (1 << 31)
    draw = torch.Generator().manual_seed(seed)
    if need.per == "element" or (need.vectors and tensor.dim() == 1):
        return torch.rand(tensor.shape, generator=draw) + 0.1
    if need.per == "spread":
        return torch.rand((*tensor.shape[:1], *[1] * (tensor.dim() - 1)), generator=draw) + 0.1
    width = math.prod(tensor.shape[1:])
    if need.per == "output_matrix":
        width = tensor.shape[0]
    if need.per == "column":
        return torch.rand(width, generator=draw) + 0.1
    inputs = torch.randn(2 * width, width, generator=draw)
    return inputs.T @ inputs / (2 * width)


def write_means(
    path: Path,
    method: Method,
    means: Mapping[str, Mapping[str, Tensor]],
    *,
    model: Mapping[str, Any] | None = None,
    unit: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """An evidence file whose means are these: the sums are thrice that, over three.

    It says it is of `model`, was counted in `unit`, and collected with `options`. Of what the
    method needs it holds what `means` has.
    """
    entries, record = {}, Record(model=dict(model or {}))
    for need in method.needs_at_defaults():
        if need.statistic not in means:
            continue
        known = means[need.statistic]
        counts = {name: {unit or need.unit: 3} for name in known}
        record.statistics[need.statistic] = StatisticRecord(dict(options or {}), counts)
        for name, mean in known.items():
            total = 3 * mean.double()
            key = key_of(name, need.statistic, need.sum)
            entries[key] = WrittenSum(tuple(mean.shape), "F64", lambda total=total: iter([total]))
    write_evidence(path, record, entries)
    return path
