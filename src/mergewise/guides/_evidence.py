"""Evidence files in recipes: which statistics, with which options, under which model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergewise.errors import EvidenceError, MergewiseError
from mergewise.evidence import Evidence, load_evidence, merge_evidence
from mergewise.guides._base import Ask
from mergewise.methods import Param

OPTIONS = Param(
    str, None, "of statistics, such as fisher.labels=data; several are separated by commas"
)


def given_options(text: str | None) -> dict[str, dict[str, Any]]:
    """``fisher.labels=data, fisher.samples=2`` by statistic and option, values as in YAML.

    Raises:
        EvidenceError: for anything else.
    """
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().partition("=")
        statistic, dot, option = name.partition(".")
        if not part.strip():
            continue
        if not (equals and dot and statistic and option):
            raise EvidenceError(
                f"collect: {part.strip()!r}: STATISTIC.OPTION=VALUE expected, such as "
                "fisher.labels=data"
            )
        try:
            found.setdefault(statistic, {})[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[statistic][option] = value
    return found


def options_problem(text: str | None, statistics: Iterable[str] | None = None) -> str | None:
    """What is wrong with the options of statistics, in words; None if nothing.

    Args:
        statistics: that are collected; by default those that the options name.
    """
    from mergewise.evidence.statistics import requests

    try:
        given = given_options(text)
        names = list(statistics if statistics is not None else given)
        if names:
            requests(names, given)
    except MergewiseError as error:
        return str(error)
    return None


def of_base(ask: Ask, statistic: str) -> Evidence:
    """The base's evidence, on the data of all experts together.

    Raises:
        MergewiseError: if what was collected on several sets of data does not add up.
    """
    files = {expert.base[statistic].path: expert.base[statistic] for expert in ask.experts}
    if len(files) == 1:
        return next(iter(files.values()))
    return merge_evidence(list(files), ask.keep(f"base.{statistic}.safetensors"), overwrite=True)


def earlier(path: Path) -> Evidence | None:
    """What an earlier run left, whole."""
    try:
        return load_evidence(path) if path.is_file() else None
    except EvidenceError:
        return None


def name_files(
    document: dict[str, Any], ask: Ask, files: Mapping[int, Sequence[Evidence]]
) -> list[str]:
    """Write evidence under models; what was replaced, in words.

    Args:
        document: is changed.
        files: by the model's place in the recipe.
    """
    notes = []
    for index, own in files.items():
        model = document["models"][index]
        named = [ask.refer(path) for path in dict.fromkeys(one.path for one in own)]
        old = model.get("evidence")
        model["evidence"] = named[0] if len(named) == 1 else named
        if old is not None and old != model["evidence"]:
            notes.append(f"evidence {old} of {model['model']} is replaced")
    return notes


def name_base(document: dict[str, Any], ask: Ask, files: Sequence[Evidence]) -> None:
    """List the base among the models, with its evidence, which is where a method looks for it."""
    base = document["base_model"]
    at = [i for i, one in enumerate(document["models"]) if one["model"] == base]
    if not at:
        document["models"].append({"model": base})
        at = [len(document["models"]) - 1]
    name_files(document, ask, {at[0]: files})
