"""Collect what a guide needs to know of a recipe's models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergewise._paths import expanded
from mergewise.checkpoint import Checkpoint, fetched, fingerprint, make_folder
from mergewise.errors import EvidenceError, GuideError, OutputError
from mergewise.evidence import Data, Evidence, collect, fingerprint_of, load_evidence, see_tokens
from mergewise.evidence.models import refuse_on_disk, usual_dtype
from mergewise.guides._ask import (
    Files,
    base_of,
    by_label,
    checkpoint_of,
    experts_of,
    listed,
    planned,
    settings_of,
)
from mergewise.guides._base import Needs
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

Source = Data | str | Path | Sequence[Any]

MAX_LENGTH = 512
_KNOWN = {
    "limit", "template", "split", "max_length", "batch_size", "dtype", "device", "offload",
    "trust_remote_code", "progress", "memory",
}  # fmt: skip
"""Options with which a file is compared, or that do not change it."""


@dataclass(frozen=True)
class _Run:
    label: str
    statistics: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    data: Source
    out: Path

    @property
    def file(self) -> bool:
        """Whether the data is a file of a training checkpoint, not examples."""
        from mergewise.evidence.statistics import get_statistic

        return any(get_statistic(name).need == "file" for name in self.statistics)


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
    reuse: bool = False,
    told: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, list[Evidence | Path | str]]:
    """Collect the statistics that a guide needs for a recipe: of experts, and of their base.

    The base is run on the data of every expert.

    Args:
        name: the guide.
        data: for the experts that `each` does not name.
        folder: where the files are kept; made if it is not there.
        each: data by expert.
        evidence: what there is already, by model; it is not collected again.
        settings: of the guide.
        reuse: take files that an earlier call made of the same models and data, and replace
            others that are in their place.
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
    needs = guide.needs_for(checked, plan)
    data_of = data_by_expert(plan, data, each or {}, known)
    found = {label: listed(files) for label, files in known.items()}
    runs = [
        *_base_runs(plan, needs, data_of, known, Path(folder)),
        *_expert_runs(plan, needs, data_of, known, Path(folder)),
    ]
    _check(plan, runs, overwrite or reuse, options)
    for run in runs:
        earlier = _earlier(plan, run, options) if reuse else None
        found.setdefault(run.label, []).append(
            earlier or _collect(plan, run, overwrite or reuse, told, options)
        )
    return found


def _collect(
    plan: MergePlan,
    run: _Run,
    overwrite: bool,
    told: Callable[[str], None] | None,
    options: Mapping[str, Any],
) -> Evidence:
    make_folder(run.out.parent)
    if told is not None:
        told(f"{', '.join(run.statistics)} of {run.label} on {_name(run.data)}")
    model = checkpoint_of(plan, run.label).path
    asked = {name: dict(run.options[name]) for name in run.statistics if name in run.options}
    data: Any = run.data
    if run.file and isinstance(data, Data):
        data = data.path or data.source
    return collect(
        run.statistics, model, data, run.out, options=asked, overwrite=overwrite, **options
    )


def _earlier(plan: MergePlan, run: _Run, options: Mapping[str, Any]) -> Evidence | None:
    """What an earlier run made of the same model and data, if it did."""
    if run.file or not run.out.is_file() or set(options) - _KNOWN:
        return None
    try:
        found = load_evidence(run.out)
    except EvidenceError:
        return None
    model = checkpoint_of(plan, run.label)
    same = (
        {name: dict(one.options) for name, one in found.record.statistics.items()} == _asked(run)
        and found.record.model.get("weights")
        == [fingerprint(path) for path in fetched(model).files]
        and len(found.record.parts) == 1
        and _read_alike(found.record.parts[0], run, model, options)
        and found.record.model.get("dtype") == _dtype(found, model, options)
        # last, since it reads the weights: tokenizer and config count too
        and found.record.model.get("fingerprint") == fingerprint_of(model.path)
    )
    return found if same else None


def _asked(run: _Run) -> dict[str, dict[str, Any]]:
    """Every option of the statistics of a run, by statistic."""
    from mergewise.evidence.statistics import requests

    given = {name: run.options[name] for name in run.statistics if name in run.options}
    return {one.statistic.name: dict(one.options) for one in requests(run.statistics, given)}


def _read_alike(
    part: Mapping[str, Any], run: _Run, model: Checkpoint, options: Mapping[str, Any]
) -> bool:
    """Whether a file's data is that of a run, read in the same way."""
    data = run.data if isinstance(run.data, Data) else Data(run.data, split=_split(options))
    if options.get("limit"):
        data = data.first(options["limit"])
    wanted = {
        "sha256": replace(data, rows=(0, None)).fingerprint(),
        "rows": list(data.rows),
        "split": data.split,
        "template": options.get("template"),
        "max_length": _length(model, options),
    }
    return wanted["sha256"] is not None and {key: part.get(key) for key in wanted} == wanted


def _dtype(found: Evidence, model: Checkpoint, options: Mapping[str, Any]) -> str:
    """What the model is run in."""
    device = str(found.record.parts[0].get("device", "cpu"))
    return str(options.get("dtype") or usual_dtype(model.dtype, device))


def _split(options: Mapping[str, Any]) -> str:
    return str(options.get("split") or "train")


def _length(model: Checkpoint, options: Mapping[str, Any]) -> int:
    positions = (model.config or {}).get("max_position_embeddings")
    return int(options.get("max_length") or min(MAX_LENGTH, positions or MAX_LENGTH))


def data_by_expert(
    plan: MergePlan,
    data: Source | None,
    each: Mapping[str, Source],
    known: Mapping[str, Any] | None = None,
) -> dict[str, Source]:
    """Every expert's data, by label.

    Args:
        data: for the experts that `each` does not name.
        known: experts whose evidence is known; they may be without.

    Raises:
        GuideError: for an expert without data, or a name that is none of the recipe's.
    """
    each, found = by_label(plan, each), {}
    named_in_recipe = {str(s.model) for _, s in experts_of(plan) if s.evidence}
    for label in dict.fromkeys(str(source.model) for _, source in experts_of(plan)):
        chosen = each.get(label, data)
        if chosen is not None:
            found[label] = chosen
        elif label not in (known or {}) and label not in named_in_recipe:
            raise GuideError(f"no data for {label}; give --data {label}=FILE, or --data FILE")
    return found


def _expert_runs(
    plan: MergePlan,
    needs: Needs,
    data: Mapping[str, Source],
    known: Mapping[str, Any],
    folder: Path,
) -> list[_Run]:
    wanted = [label for label in data if label not in known and needs.experts]
    names = _file_names([*wanted, base_of(plan) or ""])
    return [
        _Run(x, needs.experts, needs.options, data[x], folder / f"{names[x]}.safetensors")
        for x in wanted
    ]


def _base_runs(
    plan: MergePlan,
    needs: Needs,
    data: Mapping[str, Source],
    known: Mapping[str, Any],
    folder: Path,
) -> list[_Run]:
    """One for every set of data that an expert has."""
    base = base_of(plan)
    if base is None or base in known or not needs.base:
        return []
    users: dict[Any, list[str]] = {}
    for label, source in data.items():
        users.setdefault(source if isinstance(source, str | Path) else id(source), []).append(label)
    names = _file_names([*data, base])
    runs = []
    for labels in users.values():
        suffix = f".{names[labels[0]]}" if len(users) > 1 else ""
        out = folder / f"{names[base]}{suffix}.safetensors"
        runs.append(_Run(base, needs.base, needs.options, data[labels[0]], out))
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


def _check(
    plan: MergePlan, runs: Sequence[_Run], overwrite: bool, options: Mapping[str, Any]
) -> None:
    """See that nothing stands in the way of the last run, before the first."""
    for run in runs:
        if run.out.exists() and not overwrite:
            raise OutputError(
                f"{run.out}: exists already; pass --overwrite, or use it: "
                f"--evidence {run.label}={run.out}"
            )
        if run.file:
            _look_for(run, checkpoint_of(plan, run.label))
        else:
            _look_at(run, checkpoint_of(plan, run.label), options)


def _look_at(run: _Run, model: Checkpoint, options: Mapping[str, Any]) -> None:
    """See that data has texts, and the model a tokenizer."""
    if options.get("offload"):
        refuse_on_disk(model)
    from mergewise.evidence import Reading, as_data, survey
    from mergewise.evidence.statistics import has_tokenizer, role_of

    data = run.data
    if isinstance(data.source if isinstance(data, Data) else data, Iterator):
        return  # it can be read only once
    found = as_data(data, options.get("limit"), (0, 1), _split(options))
    reading = Reading(template=options.get("template"))
    try:
        survey(found, role_of(model), reading, has_tokenizer(model.path, model))
    except EvidenceError as error:
        raise EvidenceError(f"{run.label}: {error}") from None
    trust = bool(options.get("trust_remote_code"))
    see_tokens(run.label, model, found, role_of(model), options.get("template"), trust)


def _look_for(run: _Run, model: Checkpoint) -> None:
    from mergewise.evidence.statistics import get_statistic, training_file
    from mergewise.evidence.statistics.adam import of_factors

    if model.adapter is not None and "adam" in run.statistics:
        raise EvidenceError(of_factors(model))
    path = run.data.path if isinstance(run.data, Data) else run.data
    if isinstance(path, str | Path):
        training_file(get_statistic(run.statistics[0]), expanded(path))


def _name(data: Source) -> str:
    return data.name if isinstance(data, Data) else str(data)[:80]
