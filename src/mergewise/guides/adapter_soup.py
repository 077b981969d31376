"""AdapterSoup: the mean of the experts whose data is most like that of a new task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergewise._paths import exists, expanded
from mergewise.checkpoint import open_checkpoint
from mergewise.errors import GuideError
from mergewise.evidence import open_model
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._embeddings import direction
from mergewise.guides._losses import look_at
from mergewise.guides._weighting import (
    commented,
    equal_weights,
    weight_problem,
    without_others,
)
from mergewise.methods import REQUIRED, Param, Settings
from mergewise.recipe import Recipe

_OPENING = ("device", "dtype", "offload", "trust_remote_code")


class AdapterSoup(Guide):
    """Which experts are merged, chosen by the likeness of data alone."""

    name = "adapter_soup"
    summary = "which experts take part: those whose data is most like the target's"
    data = "unlabelled"
    source = "AdapterSoup, Chronopoulou et al. 2023, arXiv 2302.07027"
    variant = (
        "the selection by similar sentences, from memory and unverified; embeddings of the base "
        "model's last layer, not of a sentence encoder; whole models or adapters alike"
    )
    verified = "idea"
    writes = "weight"
    based = False
    params = {
        "target": Param(str, REQUIRED, "examples of the new task: a file, or datasets:NAME"),
        "k": Param(int, 5, "how many experts are chosen", ge=1),
        "samples": Param(int, 100, "examples of each data set, the first", ge=1),
        "encoder": Param(str, None, "the checkpoint that embeds; default: the base"),
    }

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if settings.encoder is None and recipe.output.base_model is None:
            return "a model embeds the data, and the recipe has no base; set encoder=CHECKPOINT"
        return weight_problem(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        found = _likeness(ask)
        order = sorted(range(len(found)), key=lambda i: -found[i])
        chosen = sorted(order[: ask.settings.k])
        edit = without_others(ask, chosen)
        text, recipe, notes = explicit(self, ask, equal_weights(ask, chosen), edit)
        told = [
            f"{ask.experts[i].label}: likeness {found[i]:.6f}{'' if i in chosen else ', left out'}"
            for i in order
        ]
        warnings = ask.warnings
        if len(chosen) == len(found):
            warnings += (f"all {len(found)} experts are chosen; set k to fewer",)
        return Guided(commented(text, told), recipe, (), (*told, *notes), warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "e(x): mean over tokens of the base's last hidden states, divided by its length.\n"
            "Likeness of expert i: the mean of e(x) . e(y), x of its data, y of the target's.\n"
            "The k most alike are merged, each with weight 1 / k; of equal ones the first."
        )


def _likeness(ask: Ask) -> list[float]:
    """Of every expert's data with the target's."""
    first = ask.data[ask.experts[0].label]
    target = replace(first, source=_target(ask), rows=(0, None))
    sets = [target, *(ask.data[expert.label] for expert in ask.experts)]
    short = [data.first(ask.settings.samples) for data in sets]
    for data in short:
        look_at(ask, data)
    options = {key: ask.options[key] for key in _OPENING if ask.options.get(key)}
    model = open_model(_encoder(ask), "body", **options)
    found = []
    for data in short:
        ask.tell(f"embeddings of {data.name} by {model.name}")
        found.append(direction(model, data, ask.options))
    return [float(found[0] @ each) for each in found[1:]]


def _target(ask: Ask) -> str | Path:
    text = str(ask.settings.target)
    return text if text.startswith("datasets:") else _found(text, ask)


def _encoder(ask: Ask) -> Path:
    if ask.settings.encoder is None:
        return ask.foundation.path
    path = _found(ask.settings.encoder, ask)
    if not exists(path):
        raise GuideError(f"adapter_soup: encoder: no checkpoint {path}")
    return open_checkpoint(path).path


def _found(text: str, ask: Ask) -> Path:
    """A path from the current folder, else from the recipe's."""
    path, home = expanded(text), Path(ask.plan.recipe.path).parent
    return home / path if not exists(path) and exists(home / path) else path
