"""Collect what a guide needs to know of a recipe's models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint import make_folder
from mergewise.errors import GuideError, OutputError
from mergewise.evidence import Data, collect
from mergewise.guides._ask import (
    Files,
    base_of,
    by_label,
    checkpoint_of,
    experts_of,
    planned,
    settings_of,
)
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

Source = Data | str | Path | Sequence[Any]


@dataclass(frozen=True)
class _Run:
    label: str
    statistics: tuple[str, ...]
    data: Source
    out: Path


def collect_for(
    recipe: Recipe | str | Path | Mapping[str, Any],
    name: str,
    data: Source | None,
    folder: Path | str,
    *,
    each: Mapping[str, Source] | None = None,
    evidence: Mapping[str, Files] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    told: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, list[Files]]:
    """Collect the statistics that a guide needs for a recipe: of experts, and of their base.

    The base is run on the data of every expert.

    Args:
        name: the guide.
        data: for the experts that `each` does not name.
        folder: where the files are kept; made if it is not there.
        each: data by expert.
        evidence: what there is already, by model; it is not collected again.
        settings: of the guide.
        told: called with a line before each model is run.
        options: of `mergewise.evidence.collect`, such as ``limit`` and ``max_length``.

    Returns:
        Evidence by model, for `guide`.

    Raises:
        GuideError: for an unknown guide, setting or model, or an expert without data.
        OutputError: if a file exists.
        MergewiseError: as `collect` raises.
    """
    from mergewise.guides import get_guide

    guide = get_guide(name)
    checked = settings_of(guide, settings or {})
    plan = planned(guide, recipe, checked)
    known = by_label(plan, evidence or {})
    needs = guide.needs(checked)
    data_of = _data_of(plan, data, by_label(plan, each or {}), known)
    found: dict[str, list[Files]] = {label: [one] for label, one in known.items()}
    runs = [
        *_base_runs(plan, needs.base, data_of, known, Path(folder)),
        *_expert_runs(plan, needs.experts, data_of, known, Path(folder)),
    ]
    _check(runs, overwrite)
    for run in runs:
        make_folder(Path(folder))
        if told is not None:
            told(f"{', '.join(run.statistics)} of {run.label} on {_name(run.data)}")
        checkpoint = checkpoint_of(plan, run.label)
        made = collect(
            run.statistics, checkpoint.path, run.data, run.out, overwrite=overwrite, **options
        )
        found.setdefault(run.label, []).append(made)
    return found


def _data_of(
    plan: MergePlan, data: Source | None, each: Mapping[str, Source], known: Mapping[str, Any]
) -> dict[str, Source]:
    """Every expert's data; experts whose evidence is known may be without."""
    found = {}
    named_in_recipe = {str(s.model) for _, s in experts_of(plan) if s.evidence}
    for label in dict.fromkeys(str(source.model) for _, source in experts_of(plan)):
        chosen = each.get(label, data)
        if chosen is not None:
            found[label] = chosen
        elif label not in known and label not in named_in_recipe:
            raise GuideError(f"no data for {label}; give --data {label}=FILE, or --data FILE")
    return found


def _expert_runs(
    plan: MergePlan,
    statistics: tuple[str, ...],
    data: Mapping[str, Source],
    known: Mapping[str, Any],
    folder: Path,
) -> list[_Run]:
    wanted = [label for label in data if label not in known and statistics]
    names = _file_names([*wanted, base_of(plan)])
    return [_Run(x, statistics, data[x], folder / f"{names[x]}.safetensors") for x in wanted]


def _base_runs(
    plan: MergePlan,
    statistics: tuple[str, ...],
    data: Mapping[str, Source],
    known: Mapping[str, Any],
    folder: Path,
) -> list[_Run]:
    """One for every set of data that an expert has."""
    base = base_of(plan)
    if base in known or not statistics:
        return []
    users: dict[Any, list[str]] = {}
    for label, source in data.items():
        users.setdefault(source if isinstance(source, str | Path) else id(source), []).append(label)
    names = _file_names([*data, base])
    runs = []
    for labels in users.values():
        suffix = f".{names[labels[0]]}" if len(users) > 1 else ""
        out = folder / f"{names[base]}{suffix}.safetensors"
        runs.append(_Run(base, statistics, data[labels[0]], out))
    return runs


def _file_names(labels: Sequence[str]) -> dict[str, str]:
    """A short file name for each model; numbered where models have one name."""
    found: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        plain = re.sub(r"[^\w.-]+", "_", Path(label).name, flags=re.ASCII).strip(".") or "model"
        name, number = plain, 1
        while name in found.values():
            number += 1
            name = f"{plain}_{number}"
        found[label] = name
    return found


def _check(runs: Sequence[_Run], overwrite: bool) -> None:
    """See that nothing stands in the way of the last run, before the first."""
    for run in runs:
        if run.out.exists() and not overwrite:
            raise OutputError(
                f"{run.out}: exists already; pass --overwrite, or use it: "
                f"--evidence {run.label}={run.out}"
            )
        if isinstance(run.data, Data | str | Path):
            next(iter(run.data if isinstance(run.data, Data) else Data(run.data)), None)


def _name(data: Source) -> str:
    return data.name if isinstance(data, Data) else str(data)[:80]
