"""RegMean++: RegMean whose Gram matrices are measured behind layers that are merged already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergewise import __version__
from mergewise.errors import GuideError
from mergewise.evidence import Evidence, fingerprint_of
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._evidence import earlier, name_files
from mergewise.guides._names import file_name
from mergewise.methods import Param, Settings, all_methods
from mergewise.recipe import Recipe

STATISTIC = "input_gram"
_OPENING = ("device", "dtype", "trust_remote_code")


class RegMeanPlusPlus(Guide):
    """Each layer of each expert sees what the merged layers before it make of its data."""

    name = "regmean_plus_plus"
    summary = "RegMean, layer by layer: each layer's inputs come out of merged layers"
    data = "unlabelled"
    source = "RegMean++, Nguyen et al. 2025, arXiv 2508.03121"
    variant = (
        "formulas as in FusionBench's implementation; ridge and off_diagonal are the recipe's "
        "(FusionBench: 0.95 off the diagonal, for CLIP); solved around the mean; heads and poolers "
        "behind the layers are solved as well, where FusionBench leaves them at the base's weights"
    )
    verified = "paper"
    based = False
    calibrates = True
    params = {
        "max_channels": Param(
            int, None, "leave the mean for weights with more input channels", ge=1
        ),
    }

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        reading = [name for name, method in all_methods().items() if _solves(method)]
        if recipe.output.method not in reading:
            return (
                f"it collects {STATISTIC} for {', '.join(reading)}, not for "
                f"{recipe.output.method}; change merge_method"
            )
        if recipe.output.base_model is not None:
            return f"{recipe.output.method} merges models without a base; remove `base_model`"
        return None

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        files = _collected(ask)
        notes: list[str] = []

        def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
            own = {e.index: [file] for e, file in zip(ask.experts, files, strict=True)}
            notes.extend(name_files(document, ask, own))
            return [document]

        named = [
            replace(expert, evidence={STATISTIC: file})
            for expert, file in zip(ask.experts, files, strict=True)
        ]
        text, recipe, replaced = explicit(self, replace(ask, experts=tuple(named)), edit=edit)
        return Guided(text, recipe, notes=(*notes, *replaced), warnings=ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "Before the layers: the mean. Then for each layer l: G_i = X_i^T X_i / tokens, X_i the "
            "inputs of a matrix in expert i's layer l, run on expert i's data that came through "
            "the merged layers before l; W = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1; the rest of "
            "the layer is the mean; the merged layer l takes its place."
        )


def _solves(method: Any) -> bool:
    """Whether a method reads Gram matrices and nothing else."""
    needs = method.needs_at_defaults()
    return bool(needs) and all(need.statistic == STATISTIC for need in needs)


def _collected(ask: Ask) -> list[Evidence]:
    """Each expert's Gram matrices: of this run, or of an earlier one of the same models and data.

    Raises:
        GuideError: for models that are read from disk as they run.
        MergewiseError: as models are opened, and the walk raises.
    """
    if ask.options.get("offload"):
        raise GuideError("its layers are replaced in memory; leave out `offload`")
    files, known = _files(ask)
    there = [earlier(file) for file in files] if known else []
    found = [one for one in there if one is not None]
    if len(found) == len(files):
        ask.tell(f"{STATISTIC} behind merged layers: taken from {files[0].parent}")
        return found
    return _walked(ask, files)


def _walked(ask: Ask, files: Sequence[Path]) -> list[Evidence]:
    from mergewise.evidence import MergedGrams, Reading, gram_request, open_model, survey
    from mergewise.evidence.statistics import has_tokenizer, role_of
    from mergewise.guides._merging import PlannedWeights

    first = ask.experts[0].checkpoint
    request = gram_request({"max_channels": ask.settings.max_channels})
    reading = Reading(
        ask.options.get("batch_size") or 8,
        ask.options.get("max_length"),
        ask.options.get("template"),
        dict(ask.options.get("prepare") or {}),
    )
    for expert in ask.experts:
        known = has_tokenizer(expert.checkpoint.path, expert.checkpoint)
        survey(ask.data[expert.label], role_of(first), reading, known)
    opening = {key: ask.options[key] for key in _OPENING if ask.options.get(key) is not None}
    model = open_model(first.path, role_of(first), **opening)
    walk = MergedGrams(
        model, tuple(first.tensors), PlannedWeights(ask, STATISTIC), reading, request, ask.tell
    )
    experts = [(e.label, e.checkpoint, ask.data[e.label]) for e in ask.experts]
    trust = bool(ask.options.get("trust_remote_code"))
    return walk.run(experts, files, ask.options.get("memory"), trust)


def _files(ask: Ask) -> tuple[list[Path], bool]:
    """Their files, named by all that decides them; and whether all of that is known."""
    marks = [ask.data[expert.label].fingerprint() for expert in ask.experts]
    content = {
        "version": __version__,
        "models": [fingerprint_of(expert.checkpoint.path) for expert in ask.experts],
        "data": marks,
        "method": ask.stage.stage.method,
        "values": {name: repr(plan.values) for name, plan in ask.stage.tensors.items()},
        "settings": ask.settings.max_channels,
        "options": {k: repr(v) for k, v in sorted(ask.options.items()) if k != "progress"},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    names = [
        f"{i + 1}-{file_name(expert.label)}.merged-gram-{digest}.safetensors"
        for i, expert in enumerate(ask.experts)
    ]
    return [ask.keep(name) for name in names], None not in marks
