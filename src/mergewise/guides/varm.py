"""VaRM: weights from how much each tensor varied."""

from __future__ import annotations

from mergewise.guides._base import Ask, Guide, Guided
from mergewise.guides._document import Values, explicit
from mergewise.guides._measures._cells import find_cells, tensor_map
from mergewise.guides._measures._norms import shares, single_labels, squared_norms
from mergewise.guides._takes import cannot_weigh
from mergewise.methods import Settings
from mergewise.recipe import Recipe


class VaRM(Guide):
    """A weight for every tensor of every model: its share of the squared changes.

    `metagpt` tensor by tensor. A tensor that no expert changed is shared equally.
    """

    name = "varm"
    summary = "weights by tensor, from how much each expert changed it"
    data = "none"
    source = "FuseChat (VaRM), Wan et al. 2024, arXiv 2402.16107"
    variant = "merged as base plus weighted task vectors; the pivot is the base model"
    verified = "paper"
    writes = "weight"

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return cannot_weigh(recipe)

    def run(self, ask: Ask) -> Guided:
        labels, norms = single_labels(ask), squared_norms(ask)
        names = [name for name in norms[0] if all(name in own for own in norms)]
        found: dict[str, dict[str, float]] = {label: {} for label in labels}
        for name in names:
            each = {label: own[name] for label, own in zip(labels, norms, strict=True)}
            for label, weight in shares(each).items():
                found[label][name] = weight
        even = 1 / len(labels)
        values = [Values("weight", found[label], even) for label in labels]
        text, recipe, notes = explicit(self, ask, values)
        cells = find_cells(ask.stage)
        maps = [tensor_map(expert, "weight", found[expert.label], cells) for expert in ask.experts]
        return Guided(text, recipe, tuple(maps), tuple(notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "w_tm = mean (theta_t - theta_0)_m^2 / sum_k mean (theta_k - theta_0)_m^2, for every "
            "tensor m."
        )
