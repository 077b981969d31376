"""LEWIS: keep more of a task vector in the layers where fine-tuning changed what matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._densities import hold_mean, shares, spread
from mergewise.guides._document import Values, explicit
from mergewise.guides._measures._cells import Cell, find_cells, map_of
from mergewise.guides._measures._changes import STATISTIC, Changes, pruned_by
from mergewise.guides._takes import cannot_write
from mergewise.guides._thresholds import Threshold
from mergewise.guides._variants import SCORES, VARIANTS, contradiction, lacks_density, resolved
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

Numbers = dict[str, dict[int, float]]
_SOME = 3


class Lewis(Guide):
    """A density for every matrix of every layer, from activations on calibration texts."""

    name = "lewis"
    summary = "densities by layer and component, from how much activations or weights changed"
    data = "unlabelled"
    source = "LEWIS, Chopra et al. 2025, arXiv 2503.03874"
    verified = "code"
    variant = (
        "by default our own importance, curvature, which beat uniform densities in the lab where "
        "the published ones did not. importance: wanda has the reference implementation's "
        "formulas, with padding left out, means over tokens, and activations of whole models, not "
        "of pruned ones; variant: reference is that implementation. Matrices of any architecture, "
        "a mixture's experts as one; delta and gain are ours too"
    )
    params = {
        "variant": Param(
            str, None, "settings by one name: the reference implementation's, or an importance",
            choices=tuple(VARIANTS),
        ),
        "importance": Param(
            str, None,
            "curvature, if nothing is said. Of a matrix: weights times inputs (the reference), "
            "outputs (the paper's text), or the expert's difference from the base times its "
            "inputs; of its elements, with one threshold over the model: what they save of the "
            "expert's loss (curvature), or of all "
            "experts' (gain)", choices=(*STATISTIC, *SCORES),
        ),
        "density_min": Param(
            float, None, "kept of what changed least (0.3); for curvature and gain the least kept "
            "of any tensor (0)", ge=0, le=1,
        ),
        "density_max": Param(
            float, None, "kept of what changed most (0.8); for curvature and gain the most kept "
            "of any tensor (1)", ge=0, le=1,
        ),
        "scope": Param(
            str, "model",
            "changes are compared over the model (the reference), each component, or by rank",
            choices=("model", "component", "rank"),
        ),
        "mean_density": Param(
            float, None,
            "shift all densities by one number, cut to [0, 1], until their mean over the elements "
            "of guided tensors is this; for curvature and gain the share above the threshold, by "
            "default the recipe's density, or the middle of density_min and density_max", ge=0,
            le=1,
        ),
        "other_density": Param(
            float, 1.0, "of tensors that are not guided: embeddings, head, norms, biases", ge=0,
            le=1,
        ),
        "parameter": Param(
            str, "density", "which parameter of the method is written",
            choices=("density", "weight"),
        ),
        "round": Param(int, 5, "decimals of shares before they are compared", ge=0, le=15),
        "propagation": Param(
            str, "dense", "activations of the models as they are, or with each layer pruned "
            "before the next (the reference)", choices=("dense", "pruned"),
        ),
        "sparsity": Param(float, 0.5, "of layers pruned for propagation", ge=0, lt=1),
        "preset": Param(
            str, None, "the same as variant reference", choices=("reference",),
        ),
    }  # fmt: skip

    def contradiction(self, given: Mapping[str, Any]) -> str | None:
        return contradiction(given, self.params)

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        chosen = resolved(settings, self.params)
        return lacks_density(settings, chosen, recipe) or cannot_write(chosen.parameter, recipe)

    def needs(self, settings: Settings) -> Needs:
        chosen = resolved(settings, self.params)
        if chosen.importance in SCORES:
            return Needs(("fisher",))
        wanted = (STATISTIC[chosen.importance],)
        # said for whole models, too, so that a file of pruned ones is not taken for it
        options = {wanted[0]: {"pruned": pruned_by(chosen.propagation, chosen.sparsity)}}
        return Needs(wanted, () if chosen.importance == "delta" else wanted, options=options)

    def run(self, ask: Ask) -> Guided:
        ask = replace(ask, settings=resolved(ask.settings, self.params))
        cells = find_cells(ask.stage)
        threshold = ask.settings.importance in SCORES
        found = Threshold(ask, cells) if threshold else _Spread(ask, cells)
        values, maps, means, odd = [], [], [], list(ask.warnings)
        for expert in ask.experts:
            tensors = found.values(expert)
            values.append(Values(ask.settings.parameter, tensors, ask.settings.other_density))
            means.append(_mean(ask, expert, tensors))
            odd += _left_out(ask, expert, cells, tensors)
            maps += found.maps(expert, cells)
        text, recipe, notes = explicit(self, ask, values)
        return Guided(text, recipe, tuple(maps), (*notes, *means), tuple(odd))

    @classmethod
    def describe(cls) -> str:
        return (
            "s_j: mean of x_j^2 over tokens, x the inputs of a matrix W (y its outputs).\n"
            "Importance: wanda sqrt(sum_oj W_oj^2 s_j); activation sqrt(mean |y|^2).\n"
            "Change of component c in layer i: |I_expert - I_base|; delta, instead: "
            "sqrt(sum_oj (W_expert - W_base)_oj^2 s_j), s of the expert.\n"
            "Share n_ci: change / sum of changes over the layers of c.\n"
            "Density: density_min + (n_ci - n_min) / (n_max - n_min) (density_max - density_min).\n"
            "Curvature, gain, instead: the share of a tensor's elements at or above one threshold "
            "over all guided tensors (cut to density_min and density_max, all shifted by one "
            "number to keep the mean), of d^2 F or of d (2 sum_t F_t d_t - d sum_t F_t); "
            "d: expert - base, F: diagonal Fisher of the expert, t: all experts."
        )


class _Spread:
    """Densities between two bounds, by how much cells changed."""

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        self._settings = ask.settings
        self._changes = Changes(ask, cells)
        self._found: dict[str, tuple[dict[Cell, float], dict[Cell, float]]] = {}

    def values(self, expert: Expert) -> dict[str, float]:
        """By tensor."""
        changes = self._changes.of(expert)
        densities = _densities(changes, self._settings)
        found = {cell: densities[cell.component][cell.layer] for cell in changes}
        self._found[expert.label] = changes, found
        return {tensor: value for cell, value in found.items() for tensor in cell.tensors}

    def maps(self, expert: Expert, cells: Sequence[Cell]) -> list[Map]:
        """Of changes, and of what was made of them."""
        changes, found = self._found[expert.label]
        return [
            map_of(expert, "change", changes),
            map_of(expert, self._settings.parameter, found),
        ]


def _densities(changes: Mapping[Cell, float], settings: Settings) -> Numbers:
    table = _table(changes, lambda cell: changes[cell])
    found = shares(table, settings.round)
    found = spread(found, settings.density_min, settings.density_max, settings.scope)
    if settings.mean_density is None:
        return found
    elements = _table(changes, lambda cell: float(cell.elements))
    return hold_mean(found, elements, settings.mean_density)


def _table(cells: Mapping[Cell, float], value: Callable[[Cell], float]) -> Numbers:
    found: Numbers = {}
    for cell in cells:
        found.setdefault(cell.component, {})[cell.layer] = value(cell)
    return found


def _mean(ask: Ask, expert: Expert, values: Mapping[str, float]) -> str:
    sizes = {name: ask.stage.tensors[name].meta.elements for name in values}
    mean = sum(value * sizes[name] for name, value in values.items()) / sum(sizes.values())
    return (
        f"{expert.label}: {ask.settings.parameter} {min(values.values()):.4g} to "
        f"{max(values.values()):.4g}, mean {mean:.6f} over the elements of {len(values)} tensors"
    )


def _left_out(
    ask: Ask, expert: Expert, cells: Sequence[Cell], values: Mapping[str, float]
) -> list[str]:
    """A warning of matrices in layers that the evidence does not describe."""
    sizes = {name: ask.stage.tensors[name].meta.elements for c in cells for name in c.tensors}
    names = [name for name in sizes if name not in values]
    if not names:
        return []
    share = sum(sizes[name] for name in names) / sum(sizes.values())
    some = ", ".join(names[:_SOME]) + (", …" if len(names) > _SOME else "")
    return [
        f"{expert.label}: {len(names)} matrices in layers, with {share:.2%} of their elements, "
        f"have no evidence and get {ask.settings.parameter} {ask.settings.other_density:g} "
        f"(other_density): {some}"
    ]
