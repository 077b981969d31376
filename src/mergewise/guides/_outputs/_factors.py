"""Factors by row and column: the evidence file in which they stand, and its place in a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import GuideError
from mergewise.evidence import Evidence, load_evidence
from mergewise.evidence.statistics import (
    Record,
    WrittenSum,
    key_of,
    write_evidence,
)
from mergewise.guides._base import Ask, Expert
from mergewise.guides._evidence import name_files
from mergewise.guides._found import found_record
from mergewise.guides._names import file_name
from mergewise.methods import all_methods
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.guides._outputs._submodule import Outputs

Weights = Mapping[str, Sequence[float]]
"""By submodule, one for each expert."""
STATISTIC = "factor"
SETTING = "factors"


def factors_problem(recipe: Recipe) -> str | None:
    """Why a recipe's method reads no factors, in words; None if it does."""
    taking = [name for name, method in all_methods().items() if SETTING in method.params]
    if recipe.output.method in taking:
        return None
    return (
        f"it writes factors for parts of tensors, which {recipe.output.method} does not read; "
        f"methods that do: {', '.join(taking)}"
    )


def refuse_scored(name: str, plan: MergePlan) -> None:
    """Refuse a recipe whose method reads evidence of its own, beside which factors do not stand.

    Args:
        name: of the guide.

    Raises:
        GuideError: for a `score` of evidence.
    """
    merged = (one.values for one in plan.output.tensors.values() if one.fate == "merge")
    scores = {values["score"] for values in merged if "score" in values} - {"magnitude"}
    if scores:
        raise GuideError(
            f"{name}: {plan.recipe.path}: `score: {min(scores)}` reads evidence of every model, "
            "and so do factors, which is not built yet; leave it out, or guide by block"
        )


def see_folder(ask: Ask) -> None:
    """Refuse early where files have no place; raises GuideError."""
    if ask.folder is None:
        raise GuideError("it writes files that the recipe names: say where, with folder=")


@dataclass
class Found:
    """A submodule, and for each task what the experts change in its outputs."""

    each: list[Outputs]

    @property
    def first(self) -> Outputs:
        return self.each[0]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Of the checkpoint, that have its weight, or a part of them."""
        return self.first.tensors

    @property
    def grams(self) -> list[Tensor]:
        """Of each task, [experts, experts]."""
        return [one.gram for one in self.each]

    def weights(self, ridge: float) -> list[float]:
        """One for each expert."""
        from mergewise.guides._outputs._linearity import fitted

        return fitted(self.grams, ridge)

    def stated(self, weight: float) -> float:
        """What a recipe says of its tensors: the weights of heads stand in files."""
        return weight if self.first.group is None else 1.0


def factors_of(
    ask: Ask, heads: Mapping[str, Found], weights: Weights, expert: int
) -> dict[str, Tensor]:
    """One expert's weights of heads by tensor, in its shape but 1 along axes of repetition.

    Args:
        weights: by submodule, one for each expert.
    """
    found: dict[str, Tensor] = {}
    for path, one in heads.items():
        for name, (axis, groups) in one.first.places.items():
            shape = [1] * len(ask.foundation.tensors[name].shape)
            shape[axis] = len(groups)
            own = found.setdefault(name, torch.zeros(shape))
            own.movedim(axis, 0)[groups == one.first.group] = weights[path][expert]
    return found


def keep_factors(
    ask: Ask, expert: Expert, factors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Evidence:
    """Write an expert's factors; the file's name changes with what it holds.

    Args:
        factors: float32, by tensor: of its shape, 1 along axes where they are repeated.
        options: what they were found with.

    Raises:
        OutputError: if the file cannot be written.
    """
    record = found_record(ask, expert, STATISTIC, options, factors)
    out = ask.keep(f"{file_name(expert.label)}.factor-{_digest(record, factors)}.safetensors")
    write_evidence(
        out,
        record,
        {
            key_of(name, STATISTIC, STATISTIC): WrittenSum(
                tuple(value.shape), "F32", partial(_flat, value)
            )
            for name, value in sorted(factors.items())
        },
    )
    return load_evidence(out)


def _flat(value: Tensor) -> Any:
    return iter([value.flatten()])


def _digest(record: Record, factors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(record.model, sort_keys=True, default=str).encode())
    for name, value in sorted(factors.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def with_factors(
    document: dict[str, Any], ask: Ask, files: Sequence[Evidence], notes: list[str]
) -> list[dict[str, Any]]:
    """The document whose method reads each expert's file; what is replaced is noted.

    Args:
        files: one for each expert.
        notes: is added to.
    """
    parameters = document.get("parameters") or {}
    document["parameters"] = {**parameters, SETTING: True}
    places = [expert.index for expert in ask.experts]
    each = {place: [file] for place, file in zip(places, files, strict=True)}
    notes += name_files(document, ask, each)
    return [document]
