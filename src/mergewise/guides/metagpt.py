"""MetaGPT: weights from the lengths of task vectors."""

from __future__ import annotations

import math

from mergewise.guides._base import Ask, Guide, Guided
from mergewise.guides._document import Values, explicit
from mergewise.guides._measures._norms import shares, single_labels, squared_norms
from mergewise.guides._takes import cannot_weigh
from mergewise.methods import Settings
from mergewise.recipe import Recipe


class MetaGPT(Guide):
    """One weight a model: its share of all squared task vectors.

    It minimises a bound on the summed loss differences from the experts, if losses are linear in
    the weights there and task vectors are orthogonal. Experts that moved further get more, whether
    they learned more or merely were trained at a higher rate.
    """

    name = "metagpt"
    summary = "weights by model, from the lengths of task vectors"
    data = "none"
    source = "MetaGPT, Zhou et al. 2024, arXiv 2406.11385"
    variant = "all tensors that are merged count, embeddings too, of which the paper says nothing"
    verified = "paper"
    writes = "weight"

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return cannot_weigh(recipe)

    def run(self, ask: Ask) -> Guided:
        lengths = [math.fsum(own.values()) for own in squared_norms(ask)]
        found = shares(dict(zip(single_labels(ask), lengths, strict=True)))
        values = [Values("weight", {}, weight) for weight in found.values()]
        text, recipe, notes = explicit(self, ask, values)
        told = [
            f"{label}: task vector's norm {math.sqrt(length):.4g}, weight {weight:.4g}"
            for (label, weight), length in zip(found.items(), lengths, strict=True)
        ]
        return Guided(text, recipe, (), (*notes, *told), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return "w_t = |theta_t - theta_0|^2 / sum_k |theta_k - theta_0|^2, over the whole model."
