"""Sens-Merging: weights by layer, from the loss's sensitivity and how far logits lie apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.errors import EvidenceError
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._by_layer import by_layer
from mergewise.guides._document import explicit
from mergewise.guides._logits import logit_distances
from mergewise.guides._measures._effects import STATISTIC, mean_of
from mergewise.guides._takes import cannot_weigh
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

Groups = Mapping[str, Sequence[str]]
"""Names of tensors by layer; tensors outside of layers are groups of their own."""


class SensMerging(Guide):
    """More weight where an expert's loss is sensitive, and to experts unlike the others.

    Norms over layers and experts make the arguments of the softmax small: weights stay near one
    another unless `temperature` is far below the paper's 2 to 6.
    """

    name = "sens_merging"
    summary = "weights by layer, from sensitivities of the loss and distances of logits"
    data = "labelled"
    source = "Sens-Merging, Liu et al. 2025, arXiv 2502.12420"
    verified = "idea"
    variant = (
        "the formula is not confirmed in the authors' code: it is that of a second-hand summary "
        "of the paper, and details (sums of |w g| over a layer, tensors outside of layers as "
        "layers of their own, K as the number of experts) are those of another paper's port"
    )
    writes = "weight"
    params = {
        "temperature": Param(
            float, 2.0, "of the softmax over experts; the paper tries 2 to 6", gt=0
        ),
        "scale": Param(
            float, None, "sum of the experts' weights in a layer, K; by default their number"
        ),
    }

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return cannot_weigh(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs((STATISTIC,), data=True, options={STATISTIC: {"keep": "absolute"}})

    def run(self, ask: Ask) -> Guided:
        groups = _groups(ask)
        alphas = [_sensitivities(expert, groups) for expert in ask.experts]
        taus = transferability(logit_distances(ask))
        scale = ask.settings.scale
        scale = float(len(ask.experts)) if scale is None else scale
        found = coefficients(alphas, taus, ask.settings.temperature)
        weights = [{group: scale * s for group, s in own.items()} for own in found]
        named = [{n: own[group] for group, ns in groups.items() for n in ns} for own in weights]
        text, recipe, notes = explicit(
            self, ask, edit=by_layer(ask, named, [scale / len(ask.experts)] * len(ask.experts))
        )
        maps = [
            one
            for expert, alpha, own in zip(ask.experts, alphas, weights, strict=True)
            for one in (_map(expert, "sensitivity", alpha), _map(expert, "weight", own))
        ]
        told = [_told(e, t, own) for e, t, own in zip(ask.experts, taus, weights, strict=True)]
        return Guided(text, recipe, tuple(maps), (*notes, *told), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "alpha_tl = mean over examples of sum |w g| over the tensors of layer l of expert t, "
            "g: gradient of its loss; divided by the Euclidean norm over l.\n"
            "tau_t = sum over the other experts j of mean ||logits_t - logits_j|| on j's data, "
            "divided by its sum over t.\n"
            "w_tl = K exp(alpha_tl tau_t / temperature) / sum_k exp(alpha_kl tau_k / temperature)."
        )


def coefficients(
    alphas: Sequence[Mapping[str, float]], taus: Sequence[float], temperature: float
) -> list[dict[str, float]]:
    """For each expert, by layer: softmax over experts of alpha tau / temperature.

    Args:
        alphas: for each expert, by layer; all of the same layers.
        taus: for each expert.
    """
    found: list[dict[str, float]] = [{} for _ in alphas]
    for group in alphas[0]:
        at = [a[group] * tau / temperature for a, tau in zip(alphas, taus, strict=True)]
        powers = [math.exp(value - max(at)) for value in at]
        for own, power in zip(found, powers, strict=True):
            own[group] = power / math.fsum(powers)
    return found


def transferability(distances: Sequence[Sequence[float]]) -> list[float]:
    """Each expert's share of all distances; equal if there are none."""
    sums = [math.fsum(row) for row in distances]
    whole = math.fsum(sums)
    return [one / whole if whole > 0 else 1 / len(sums) for one in sums]


def _groups(ask: Ask) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, tensor in ask.stage.tensors.items():
        if tensor.fate == "merge":
            layer = layer_index(name)
            group = name if layer is None else f"{layer_prefix(name)}{layer}"
            found.setdefault(group, []).append(name)
    return found


def _sensitivities(expert: Expert, groups: Groups) -> dict[str, float]:
    """By layer, with Euclidean norm 1; 0 where the evidence describes nothing."""
    evidence = expert.evidence[STATISTIC]
    sums = {}
    for group, names in groups.items():
        known = [mean_of(evidence, "absolute", name) for name in names]
        sums[group] = math.fsum(float(one.double().sum()) for one in known if one is not None)
    norm = math.hypot(*sums.values())
    if norm == 0:
        raise EvidenceError(
            f"{evidence.path}: {STATISTIC} of {expert.label} is zero, or of no tensor that is "
            "merged; was it collected on this model?"
        )
    return {group: value / norm for group, value in sums.items()}


def _map(expert: Expert, what: str, values: Mapping[str, float]) -> Map:
    inside = {g: v for g, v in values.items() if layer_index(f"{g}.weight") is not None}
    return Map(expert.label, what, {group: {"layer": value} for group, value in inside.items()})


def _told(expert: Expert, tau: float, weights: Mapping[str, float]) -> str:
    low, high = min(weights.values()), max(weights.values())
    return f"{expert.label}: tau {tau:.4g}, weights {low:.4g} to {high:.4g} over layers"
