"""LEWIS: keep more of a task vector in the layers where fine-tuning changed what matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError, NotBuiltYetError
from mergewise.evidence import Evidence
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._cells import Cell, find_cells
from mergewise.guides._densities import hold_mean, shares, spread
from mergewise.guides._document import Values, explicit
from mergewise.guides._importance import Importance
from mergewise.methods import Param, Settings, all_methods
from mergewise.recipe import Recipe

_STATISTIC = {
    "wanda": "input_moments",
    "activation": "output_moments",
    "delta": "input_moments",
}
Numbers = dict[str, dict[int, float]]


class Lewis(Guide):
    """A density for every matrix of every layer, from activations on calibration texts."""

    name = "lewis"
    summary = "densities by layer and component, from how much activations or weights changed"
    data = "unlabelled"
    source = "LEWIS, Chopra et al. 2025, arXiv 2503.03874"
    variant = (
        "the reference implementation's formulas, with padding left out, means over tokens, and "
        "activations of whole models, not of pruned ones; matrices of any architecture, a "
        "mixture's experts as one"
    )
    params = {
        "importance": Param(
            str, "wanda",
            "of a matrix: weights times inputs (the reference), outputs (the paper's text), or "
            "the expert's difference from the base times its inputs",
            choices=("wanda", "activation", "delta"),
        ),
        "density_min": Param(float, 0.3, "kept of what changed least", ge=0, le=1),
        "density_max": Param(float, 0.8, "kept of what changed most", ge=0, le=1),
        "scope": Param(
            str, "model",
            "changes are compared over the model (the reference), each component, or by rank",
            choices=("model", "component", "rank"),
        ),
        "mean_density": Param(
            float, None,
            "shift all densities by one number, cut to [0, 1], until their mean over the elements "
            "of guided tensors is this", ge=0, le=1,
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
        "preset": Param(
            str, None, "settings that reproduce the reference implementation",
            choices=("reference",),
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`.

        Raises:
            NotBuiltYetError: for pruned propagation and the reference's preset.
        """
        for setting, value in (("propagation", "pruned"), ("preset", "reference")):
            if getattr(settings, setting) == value:
                raise NotBuiltYetError(
                    f"lewis: {setting} {value} is not built yet; leave it out for activations of "
                    "whole models"
                )
        if settings.density_min > settings.density_max:
            return (
                f"density_min {settings.density_min:g} is greater than density_max "
                f"{settings.density_max:g}; exchange them"
            )
        taking = [name for name, method in all_methods().items() if _takes(method, settings)]
        if recipe.output.method in taking:
            return None
        return (
            f"it writes {settings.parameter} for every expert, which {recipe.output.method} does "
            f"not take; methods that do: {', '.join(taking)}"
        )

    def needs(self, settings: Settings) -> Needs:
        wanted = (_STATISTIC[settings.importance],)
        return Needs(wanted, () if settings.importance == "delta" else wanted)

    def run(self, ask: Ask) -> Guided:
        cells = find_cells(ask.stage)
        measured = _Measures(ask, cells)
        values, maps, means = [], [], []
        for expert in ask.experts:
            changes = measured.changes(expert)
            if not changes:
                raise EvidenceError(
                    f"the evidence of {expert.label} describes no matrix in a layer that "
                    f"{ask.stage.stage.method} is to merge; was it collected on this model?"
                )
            densities = _densities(changes, ask.settings)
            found = {cell: round(densities[cell.component][cell.layer], 6) for cell in changes}
            values.append(
                Values(
                    ask.settings.parameter,
                    {tensor: v for cell, v in found.items() for tensor in cell.tensors},
                    ask.settings.other_density,
                )
            )
            means.append(_mean(expert, found, ask.settings.parameter))
            maps += [_map(expert, "change", changes), _map(expert, ask.settings.parameter, found)]
        text, recipe, notes = explicit(self, ask, values)
        return Guided(text, recipe, tuple(maps), (*notes, *means), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "s_j: mean of x_j^2 over tokens, x the inputs of a matrix W (y its outputs).\n"
            "Importance: wanda sqrt(sum_oj W_oj^2 s_j); activation sqrt(mean |y|^2).\n"
            "Change of component c in layer i: |I_expert - I_base|; delta, instead: "
            "sqrt(sum_oj (W_expert - W_base)_oj^2 s_j), s of the expert.\n"
            "Share n_ci: change / sum of changes over the layers of c.\n"
            "Density: density_min + (n_ci - n_min) / (n_max - n_min) (density_max - density_min)."
        )


def _takes(method: object, settings: Settings) -> bool:
    param: Param | None = getattr(method, "params", {}).get(settings.parameter)
    return param is not None and param.per_model


class _Measures:
    """Changes of every expert; what is measured of the base on the same evidence, only once."""

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        self._ask = ask
        self._cells = cells
        self._kind = ask.settings.importance
        self._statistic = _STATISTIC[self._kind]
        self._known: dict[object, dict[Cell, float]] = {}
        self._told = _Told(ask, cells)

    def changes(self, expert: Expert) -> dict[Cell, float]:
        own = expert.evidence[self._statistic]
        if self._kind == "delta":
            return self._measure(own, expert.checkpoint, self._ask.base)
        mine = self._measure(own, expert.checkpoint)
        base = self._measure(expert.base[self._statistic], self._ask.base)
        return {cell: abs(mine[cell] - base[cell]) for cell in mine if cell in base}

    def _measure(
        self, evidence: Evidence, model: Checkpoint, minus: Checkpoint | None = None
    ) -> dict[Cell, float]:
        key = (evidence.path, model.path)
        if key not in self._known:
            weights = None if self._kind == "activation" else model
            one = Importance(self._statistic, evidence, weights, minus, self._told)
            self._known[key] = one.of(self._cells)
        return self._known[key]


class _Told:
    """Adds up the bytes that were read, and passes them on."""

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        refs = (ask.base.tensors[tensor] for cell in cells for tensor in cell.tensors)
        self._total = sum(ref.nbytes for ref in refs) * (len(ask.experts) + 1)
        self._done = 0
        self._progress = ask.progress

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


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


def _mean(expert: Expert, values: Mapping[Cell, float], parameter: str) -> str:
    elements = sum(cell.elements for cell in values)
    mean = sum(value * cell.elements for cell, value in values.items()) / elements
    tensors = sum(len(cell.tensors) for cell in values)
    return (
        f"{expert.label}: {parameter} {min(values.values()):.4g} to {max(values.values()):.4g}, "
        f"mean {mean:.6f} over the elements of {tensors} tensors"
    )


def _map(expert: Expert, what: str, values: Mapping[Cell, float]) -> Map:
    found: dict[str, dict[str, float]] = {}
    for cell, value in values.items():
        found.setdefault(cell.place, {})[cell.short] = value
    return Map(expert.label, what, found)
