"""APL: keep, and weigh, the parts of task vectors by what their removal does to the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergewise.errors import EvidenceError
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._densities import hold_mean, spread
from mergewise.guides._document import Values, explicit
from mergewise.guides._measures._cells import Cell, find_cells, map_of
from mergewise.guides._measures._effects import STATISTIC, effects
from mergewise.guides._measures._norms import shares, single_labels
from mergewise.guides._takes import cannot_write
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

_WRITTEN = {
    "both": ("density", "weight"),
    "density": ("density",),
    "weight": ("weight",),
}
Importance = dict[Cell, float]


class Apl(Guide):
    """Densities and weights for every matrix of every layer, from gradients at the experts.

    An expert at a minimum of the mean loss has gradients near zero there, and importances are
    then noise; for densities, examples that it was not trained on are the better data.
    """

    name = "apl"
    summary = "densities and weights by layer and component, from what they do to the loss"
    data = "labelled"
    source = "APL (Activated Parameter Locating), Kong et al. 2024, arXiv 2408.09485"
    verified = "idea"
    variant = (
        "the gradient approximation, of weight matrices only; the paper's rule for drop ratios is "
        "not known to us: densities go from density_min to density_max with the importance"
    )
    params = {
        "parameter": Param(
            str, "both", "which parameters of the method are written", choices=tuple(_WRITTEN)
        ),
        "density_min": Param(float, 0.3, "kept of what is least important", ge=0, le=1),
        "density_max": Param(float, 0.8, "kept of what is most important", ge=0, le=1),
        "scope": Param(
            str, "rank",
            "importances are compared by their rank, or as numbers over the model or over each "
            "component", choices=("rank", "model", "component"),
        ),
        "mean_density": Param(
            float, None, "shift all densities by one number, cut to [0, 1], until their mean over "
            "the elements of guided tensors is this", ge=0, le=1,
        ),
        "other_density": Param(
            float, 1.0, "of tensors that are not guided: embeddings, head, norms, biases", ge=0,
            le=1,
        ),
        "total": Param(float, 1.0, "sum of the experts' weights of one tensor"),
    }  # fmt: skip

    def written(self, settings: Settings) -> tuple[str, ...]:
        return _WRITTEN[settings.parameter]

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if settings.density_min > settings.density_max:
            return f"density_min {settings.density_min:g} is above density_max"
        problems = [cannot_write(name, recipe) for name in self.written(settings)]
        return next((problem for problem in problems if problem), None)

    def needs(self, settings: Settings) -> Needs:
        return Needs((STATISTIC,), options={STATISTIC: {"keep": "gradient"}})

    def run(self, ask: Ask) -> Guided:
        labels, cells = single_labels(ask), find_cells(ask.stage)
        found = [_importance(expert, ask, cells) for expert in ask.experts]
        weights = _weights(found, labels, ask.settings.total)
        values, maps = [], []
        for place, expert in enumerate(ask.experts):
            own = {
                "density": _densities(found[place], ask.settings),
                "weight": {cell: one[labels[place]] for cell, one in weights.items()},
            }
            written = self.written(ask.settings)
            values.append([_values(name, own[name], ask) for name in written])
            maps += _maps(expert, found[place], {name: own[name] for name in written})
        text, recipe, notes = explicit(self, ask, values)
        told = [_told(e, one, cells) for e, one in zip(ask.experts, found, strict=True)]
        return Guided(text, recipe, tuple(maps), (*notes, *told), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "Importance I of component c in layer i: |<g, d_ci>|, g: gradient of the expert's "
            "mean loss on its examples, d = expert - base; to first order what removing d_ci "
            "from the expert changes in the loss.\n"
            "Density: density_min + r (density_max - density_min), r: rank of I among all "
            "components of the expert, from 0 to 1.\n"
            "Weight of expert t: total I_t / sum_k I_k; equal where all are zero."
        )


def _importance(expert: Expert, ask: Ask, cells: Sequence[Cell]) -> Importance:
    found = effects(expert, ask.foundation, cells)
    if not found:
        raise EvidenceError(
            f"the evidence of {expert.label} describes no matrix in a layer that "
            f"{ask.stage.stage.method} is to merge; was it collected on this model?"
        )
    return {cell: abs(value) for cell, value in found.items()}


def _weights(
    found: Sequence[Importance], labels: Sequence[str], total: float
) -> dict[Cell, dict[str, float]]:
    """By cell that all experts' evidence describes, each expert's weight."""
    common = [cell for cell in found[0] if all(cell in own for own in found)]
    each = {c: {x: own[c] for x, own in zip(labels, found, strict=True)} for c in common}
    return {c: {x: total * s for x, s in shares(own).items()} for c, own in each.items()}


def _densities(found: Importance, settings: Settings) -> dict[Cell, float]:
    table: dict[str, dict[int, float]] = {}
    elements: dict[str, dict[int, float]] = {}
    for cell, value in found.items():
        table.setdefault(cell.component, {})[cell.layer] = value
        elements.setdefault(cell.component, {})[cell.layer] = cell.elements
    made = spread(table, settings.density_min, settings.density_max, settings.scope)
    if settings.mean_density is not None:
        made = hold_mean(made, elements, settings.mean_density)
    return {cell: made[cell.component][cell.layer] for cell in found}


def _values(parameter: str, found: Mapping[Cell, float], ask: Ask) -> Values:
    other = {
        "density": ask.settings.other_density,
        "weight": ask.settings.total / len(ask.experts),
    }[parameter]
    tensors = {name: value for cell, value in found.items() for name in cell.tensors}
    return Values(parameter, tensors, other)


def _maps(
    expert: Expert, found: Importance, written: Mapping[str, Mapping[Cell, float]]
) -> list[Map]:
    maps = [map_of(expert, "importance (nats)", found)]
    return [*maps, *(map_of(expert, name, own) for name, own in written.items())]


def _told(expert: Expert, found: Importance, cells: Sequence[Cell]) -> str:
    most = max(found, key=lambda cell: found[cell])
    return (
        f"{expert.label}: importance {min(found.values()):.4g} to {found[most]:.4g} nats, most in "
        f"{most.place} {most.short}; {len(found)} of {len(cells)} components described"
    )
