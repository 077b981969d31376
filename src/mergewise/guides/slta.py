"""SLTA: every expert's weight in every layer, block or head, fitted to what it does to outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence.models import StoredTensors
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._document import Values, explicit
from mergewise.guides._lines import Lines
from mergewise.guides._losses import feeder, look_at, opened
from mergewise.guides._outputs._factors import (
    STATISTIC,
    Found,
    Weights,
    factors_of,
    factors_problem,
    keep_factors,
    refuse_scored,
    see_folder,
    with_factors,
)
from mergewise.guides._takes import cannot_weigh, refuse_normalized
from mergewise.methods import Param, Settings
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe

if TYPE_CHECKING:
    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed
    from mergewise.guides._outputs._submodule import Family, Outputs


class Slta(Guide):
    """Task arithmetic with weights by submodule, which are far more linear than whole models."""

    name = "slta"
    summary = "weights by layer, block or head, in closed form from what experts do to outputs"
    data = "unlabelled"
    source = "SLTA (submodule linearity), 2025, arXiv 2504.10902"
    verified = "idea"
    variant = (
        "the paper states that submodules are merged each by itself with closed-form weights; the "
        "least-squares form of them, and inputs from each task's own expert, are ours. By head: "
        "heads that share keys and values are one submodule; what heads share (norms, biases "
        "behind them) is one more; a head's output is its part of the output projection's sum; the "
        "MLP stays whole"
    )
    writes = "weight"
    params = {
        "granularity": Param(
            str, "block", "one weight for each layer, for each of its blocks (its children that "
            "hold matrices, such as attention and MLP), or for each attention head and other block",
            choices=("layer", "block", "head"),
        ),
        "inputs": Param(
            str, "expert", "whose activations the submodules see: each task's expert's, or the "
            "base's", choices=("expert", "base"),
        ),
        "ridge": Param(
            float, 0.0, "pulls weights to 0; relative to the mean square of the changes", ge=0
        ),
        "other_weight": Param(
            float, None, "of tensors in no submodule (embeddings, head, norms between blocks); by "
            "default 1 / experts"
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        problem = cannot_weigh(recipe)
        return problem or (factors_problem(recipe) if settings.granularity == "head" else None)

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """As `needs`.

        Raises:
            GuideError: if the recipe divides weights by their sum.
        """
        refuse_normalized("slta", plan, "{} would divide the weights by their sum")
        if settings.granularity == "head":
            refuse_scored("slta", plan)
        return self.needs(settings)

    def run(self, ask: Ask) -> Guided:
        if ask.settings.granularity == "head":
            see_folder(ask)
        found = _measured(ask)
        weights = {path: one.weights(ask.settings.ridge) for path, one in found.items()}
        other = ask.settings.other_weight
        other = 1 / len(ask.experts) if other is None else other
        values = [
            Values(
                "weight",
                {
                    n: one.stated(weights[path][i])
                    for path, one in found.items()
                    for n in one.tensors
                },
                other,
            )
            for i in range(len(ask.experts))
        ]
        text, recipe, notes = _written(self, ask, values, found, weights)
        maps = [_map(expert, i, weights) for i, expert in enumerate(ask.experts)]
        notes += [_told(found, weights), _rest(ask, found, other)]
        return Guided(text, recipe, tuple(maps), tuple(notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "d_i(x) = g(x; base + tau_i) - g(x; base) for every submodule g, x its inputs.\n"
            "Weights a of the task vectors minimise sum_t E_t |sum_i a_i d_i(x) - d_t(x)|^2, x "
            "from task t's data: A a = b, A_ij = sum_t E_t <d_i, d_j>, b_i = sum_t E_t <d_i, d_t>; "
            "with a ridge, ridge mean(diag A) on A's diagonal; else the shortest solution."
        )


def _written(
    guide: Slta, ask: Ask, values: Sequence[Values], found: Mapping[str, Found], weights: Weights
) -> tuple[str, Recipe, list[str]]:
    """The recipe, with files beside it where weights are of parts of tensors."""
    heads = {path: one for path, one in found.items() if one.first.group is not None}
    if not heads:
        text, recipe, notes = explicit(guide, ask, values)
        if ask.settings.granularity == "head":
            notes.append("no attention heads were found, so weights are by block")
        return text, recipe, notes
    options = {"guide": guide.name, **vars(ask.settings)}
    files = [
        keep_factors(ask, expert, factors_of(ask, heads, weights, i), options)
        for i, expert in enumerate(ask.experts)
    ]
    named = tuple(
        replace(expert, evidence={**expert.evidence, STATISTIC: file})
        for expert, file in zip(ask.experts, files, strict=True)
    )
    more = [f"weights of {len(heads)} groups of heads: {', '.join(f.path.name for f in files)}"]
    text, recipe, notes = explicit(
        guide, replace(ask, experts=named), values, lambda d: with_factors(d, ask, files, more)
    )
    return text, recipe, notes + more


def _measured(ask: Ask) -> dict[str, Found]:
    """Every submodule, in the order of layers.

    Raises:
        GuideError: for models that are read from disk as they run.
        DataError: if an expert's data is empty.
        MergewiseError: as models are opened, and their outputs are measured.
    """
    from mergewise.guides._outputs._submodule import Family

    if ask.options.get("offload"):
        raise GuideError("weights are exchanged in memory; leave out `offload`")
    for expert in ask.experts:
        look_at(ask, ask.data[expert.label])
    merged = {name for name, one in ask.stage.tensors.items() if one.fate == "merge"}
    family = Family(
        StoredTensors(ask.foundation), [StoredTensors(e.checkpoint) for e in ask.experts], merged
    )
    found: dict[str, Found] = {}
    for expert in ask.experts:
        for path, one in _of_task(ask, expert, family).items():
            found.setdefault(path, Found([])).each.append(one)
    _check(ask, found)
    return found


def _of_task(ask: Ask, expert: Expert, family: Family) -> dict[str, Outputs]:
    from mergewise.guides._outputs._linearity import output_grams

    model, batches = _opened(ask, expert)
    lines = Lines(ask)

    def told(layer: int, layers: int) -> None:
        lines(f"data of {expert.label}: layer {layer} of {layers}")

    return output_grams(model, batches, family, ask.settings.granularity, told)


def _check(ask: Ask, found: Mapping[str, Found]) -> None:
    if not found:
        raise EvidenceError("no layer holds a tensor that is merged; is everything excluded?")
    for path, one in found.items():
        if len(one.each) != len(ask.experts):
            raise EvidenceError(
                f"{path} ran in {len(one.each)} of {len(ask.experts)} experts; they must have "
                "the same layers"
            )


def _opened(ask: Ask, expert: Expert) -> tuple[LiveModel, Sequence[Fed]]:
    """The model whose activations are the inputs, and an expert's data for it."""
    source = expert.checkpoint if ask.settings.inputs == "expert" else ask.foundation
    ask.tell(f"outputs with everybody's weights on {ask.data[expert.label].name}")
    # rounded to bfloat16, a small change of weights is not seen in outputs
    given = {**ask.options, "dtype": ask.options.get("dtype") or "float32"}
    model = opened(source, given)
    return model, list(feeder(model, ask.data[expert.label], given))


def _map(expert: Expert, index: int, weights: Mapping[str, Sequence[float]]) -> Map:
    values: dict[str, dict[str, float]] = {}
    for path, own in weights.items():
        layer = f"{layer_prefix(f'{path}.weight')}{layer_index(f'{path}.weight')}"
        short = path.removeprefix(layer).removeprefix(".") or "layer"
        values.setdefault(layer, {})[short] = own[index]
    return Map(expert.label, "weight", values)


def _told(found: Mapping[str, Found], weights: Mapping[str, Sequence[float]]) -> str:
    from mergewise.guides._outputs._linearity import left_over

    each = [left_over(one.grams, weights[path]) for path, one in found.items()]
    shares = [error / whole for error, whole in each if whole > 0]
    numbers = [v for own in weights.values() for v in own]
    mean = sum(shares) / len(shares) if shares else 0.0
    return (
        f"weights {min(numbers):.4g} to {max(numbers):.4g} in {len(found)} submodules; of the "
        f"square of what experts change in outputs {mean:.1%} is missed, mean over submodules"
    )


def _rest(ask: Ask, found: Mapping[str, Found], other: float) -> str:
    inside = {name for one in found.values() for name in one.tensors}
    rest = [n for n, t in ask.stage.tensors.items() if t.fate == "merge" and n not in inside]
    return f"{len(rest)} tensors in no submodule get the weight {other:.4g}"
