"""REPAIR: the merged model's channels get the means and spreads that the merged models have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import TransformError
from mergewise.methods import Param, Settings
from mergewise.transforms._base import Ask, Changes, Progress, Transform
from mergewise.transforms._edit import Editor
from mergewise.transforms._joint import averaged_std, joint_moments
from mergewise.transforms._layers import Found, Layer, find_layers, has_layer_norm
from mergewise.transforms._measure import Moments, Point, Watch, along, measure
from mergewise.transforms.batch_norm import PASSES

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed

Open = Callable[[], "LiveModel"]


@dataclass(frozen=True)
class Target:
    """What a layer's outputs are to look like, float64 [channels] each.

    Attributes:
        predicted: the merged model's standard deviation, where it is not measured.
    """

    mean: Tensor
    std: Tensor
    predicted: Tensor | None = None


@dataclass
class Repaired:
    """What was done, by path of the layer.

    Attributes:
        before: measured over wanted standard deviation, median over channels, in the merged model.
        after: the same in the repaired one.
        off: largest distance of a mean from the wanted one, in wanted standard deviations, after.
        constant: channels that do not vary, and were shifted only.
    """

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    off: dict[str, float] = field(default_factory=dict)
    constant: dict[str, int] = field(default_factory=dict)


class Repair(Transform):
    """REPAIR."""

    name = "repair"
    summary = "each channel before a nonlinearity gets the mean and spread of the merged models'"
    data = "unlabelled"
    models = "the models that were merged"
    weighted = True
    source = (
        "REPAIR, Jordan, Sedghi, Saukh, Entezari & Neyshabur 2022, arXiv 2211.08403; N models and "
        "average: variance as in C2M3, Crisostomi et al. 2024, arXiv 2405.17897"
    )
    variant = (
        "with passes: each, layers are measured one after the other over all data; the authors' "
        "notebooks make one pass and normalise each batch by itself (passes: one). Of a layer and "
        "the batch norm after it, the batch norm is repaired; layers without a bias are left out"
    )
    params = {
        "layers": Param(
            str, "activated", "activated: those before a nonlinearity, and batch norms; all: every "
            "layer but the model's last", choices=("activated", "all"),
        ),
        "average": Param(
            str, "std", "what of the spreads is averaged over the models",
            choices=("std", "variance"),
        ),
        "merged": Param(
            str, "measured", "measured: the merged model's moments on data; closed_form: those of "
            "the average of the models' activations, from their correlations",
            choices=("measured", "closed_form"),
        ),
        "passes": PASSES,
        "eps": Param(float, 1e-5, "a channel with no more than this share of its layer's largest "
                     "standard deviation is constant, and only shifted", ge=0, lt=1),
    }  # fmt: skip

    def run(self, ask: Ask) -> Changes:
        model = ask.open(ask.checkpoint)
        batches = ask.batches(model)
        editor = Editor(model, ask.checkpoint)
        found = find_layers(model, batches[0], editor, ask.settings.layers)
        _check(model, found, ask.settings)
        ends = [(ask.weights[label], _opener(ask, c)) for label, c in ask.models.items()]
        done = repair(model, ends, batches, editor, found, ask.settings, ask.progress)
        return Changes(
            editor.tensors(), notes=_notes(done, found, batches),
            warnings=_warnings(model, found, done),
            numbers={**vars(done), "left_out": found.left},
        )  # fmt: skip

    @classmethod
    def describe(cls) -> str:
        return (
            "For each output channel of a layer (a batch norm's, where one follows), over all "
            "rows of the data, in the merged models i with weights a_i:\n"
            "mu* = sum_i a_i mu_i, sigma* = sum_i a_i sigma_i  "
            "(average: variance: sigma*^2 = sum_i a_i sigma_i^2).\n"
            "Then, layer by layer, with mu and sigma of the merged model as repaired so far:\n"
            "y <- (y - mu) sigma* / sigma + mu*, written into weight and bias.\n"
            "merged: closed_form takes mu = mu*, sigma^2 = sum_ij a_i a_j cov_ij instead, where "
            "cov_ij is the covariance of the channel in models i and j."
        )


def _opener(ask: Ask, checkpoint: Checkpoint) -> Open:
    return lambda: ask.open(checkpoint)


def _check(model: LiveModel, found: Found, settings: Settings) -> None:
    if not found.layers:
        why = "".join(f"; {path} {reason}" for path, reason in list(found.left.items())[:3])
        raise TransformError(
            f"{model.name}: no layer to repair{why or ': nothing feeds a nonlinearity directly'}; "
            "--set layers=all takes other layers too"
        )
    norms = [layer.path for layer in found.layers if layer.norm]
    if norms and settings.merged == "closed_form":
        raise TransformError(
            f"{model.name}: merged: closed_form knows no batch norms, and {norms[0]} is one; use "
            "merged=measured"
        )


def repair(
    model: LiveModel,
    ends: Sequence[tuple[float, Open]],
    batches: Sequence[Fed],
    editor: Editor,
    found: Found,
    settings: Settings,
    progress: Progress = lambda stage, done, total: None,
) -> Repaired:
    """Repair a model in memory.

    Args:
        ends: weight of each merged model, and what opens it.
        settings: of the transform.
    """
    layers = found.layers
    if settings.merged == "closed_form":
        targets = _together(layers, ends, batches, settings.average, progress)
    else:
        targets = _one_by_one(layers, ends, batches, settings.average, progress)
    done = Repaired()
    done.before, _ = _compare(model, layers, batches, targets)
    if settings.merged == "closed_form":
        for layer in layers:
            target = targets[layer.path]
            assert target.predicted is not None
            mean, std = (v.to(layer.module.weight.device) for v in (target.mean, target.predicted))
            seen = Moments(1, mean, mean.square() + std.square())
            _fold(editor, layer, seen, target, settings.eps, done)
    elif settings.passes == "one":
        _at_once(model, layers, batches, editor, targets, settings.eps, done, progress)
    else:
        for number, layer in enumerate(layers):
            seen = measure(model, [layer.point], batches, partial=True)[layer.path]
            _fold(editor, layer, seen, targets[layer.path], settings.eps, done)
            progress("repairing layer by layer", number + 1, len(layers))
    done.after, done.off = _compare(model, layers, batches, targets)
    return done


def _one_by_one(
    layers: Sequence[Layer],
    ends: Sequence[tuple[float, Open]],
    batches: Sequence[Fed],
    average: str,
    progress: Progress,
) -> dict[str, Target]:
    """Targets from the models' own moments, one model in memory at a time."""
    means: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    for number, (weight, opened) in enumerate(ends):
        live = opened()
        seen = measure(live, _outputs(layers, live), batches)
        for path, moments in seen.items():
            spread = moments.std if average == "std" else moments.variance
            means[path] = means.get(path, 0) + weight * moments.mean.cpu()
            spreads[path] = spreads.get(path, 0) + weight * spread.cpu()
        progress("measuring the merged models", number + 1, len(ends))
    return {path: Target(mean, _spread(spreads[path], average)) for path, mean in means.items()}


def _spread(averaged: Tensor, average: str) -> Tensor:
    # negative weights may average to less than nothing
    return averaged.clamp_min(0) if average == "std" else averaged.clamp_min(0).sqrt()


def _together(
    layers: Sequence[Layer],
    ends: Sequence[tuple[float, Open]],
    batches: Sequence[Fed],
    average: str,
    progress: Progress,
) -> dict[str, Target]:
    """Targets, and what the average's spread would be, from how the models vary together."""
    live = [opened() for _, opened in ends]
    joint = joint_moments(
        live, [_outputs(layers, one) for one in live], batches,
        lambda done, total: progress("measuring the merged models", done, total),
    )  # fmt: skip
    weights = torch.tensor([weight for weight, _ in ends], dtype=torch.float64)
    targets = {}
    for path, found in joint.items():
        variances = found.covariance.diagonal().T.clamp_min(0)
        spreads = variances.sqrt() if average == "std" else variances
        std = _spread(weights @ spreads, average)
        targets[path] = Target(weights @ found.mean, std, averaged_std(weights, found.covariance))
    return targets


def _outputs(layers: Sequence[Layer], live: LiveModel) -> list[Point]:
    return [layer.outputs(live.module) for layer in layers]


def _fold(
    editor: Editor, layer: Layer, seen: Moments, target: Target, eps: float, done: Repaired
) -> None:
    device = layer.module.weight.device
    scale, constant = layer.scale(seen, target.std.to(seen.mean.device), eps)
    layer.fold(editor, seen, scale.to(device), target.mean.to(device))
    if constant:
        done.constant[layer.path] = constant


def _at_once(
    model: LiveModel,
    layers: Sequence[Layer],
    batches: Sequence[Fed],
    editor: Editor,
    targets: Mapping[str, Target],
    eps: float,
    done: Repaired,
    progress: Progress,
) -> None:
    """One pass; what leaves a layer is corrected by the moments of its own batch."""
    by_path = {layer.path: layer for layer in layers}

    def corrected(point: Point, own: Moments, value: Tensor) -> Tensor:
        layer, target = by_path[point.path], targets[point.path]
        scale, _ = layer.scale(own, target.std.to(own.mean.device), eps)
        centred = value - along(own.mean, point.axis, value)
        made = centred * along(scale, point.axis, value)
        return made + along(target.mean, point.axis, value)

    watch = Watch(model, [layer.point for layer in layers], change=corrected)
    seen = watch.run(batches, lambda at, total: progress("repairing in one pass", at, total))
    for layer in layers:
        _fold(editor, layer, seen[layer.path], targets[layer.path], eps, done)


def _compare(
    model: LiveModel,
    layers: Sequence[Layer],
    batches: Sequence[Fed],
    targets: Mapping[str, Target],
) -> tuple[dict[str, float], dict[str, float]]:
    """By layer: median ratio of standard deviations; largest distance of means."""
    seen = measure(model, [layer.outputs(model.module) for layer in layers], batches)
    ratios, off = {}, {}
    for path, moments in seen.items():
        mean, std = targets[path].mean.to(moments.mean.device), targets[path].std
        std = std.to(mean.device).clamp_min(1e-12)
        ratios[path] = float((moments.std / std).median())
        off[path] = float(((moments.mean - mean).abs() / std).max())
    return ratios, off


def _notes(done: Repaired, found: Found, batches: Sequence[Fed]) -> tuple[str, ...]:
    rows = sum(len(fed.keys) for fed in batches)
    low, high = (sorted(done.before.values())[i] for i in (0, -1))
    notes = [
        f"{len(found.layers)} layers repaired on {rows} examples; their spread was {low:.2f} to "
        f"{high:.2f} of the merged models' (median channel of each layer)"
    ]
    if found.covered:
        notes.append(f"{len(found.covered)} layers before a batch norm left to it")
    if found.left:
        some = ", ".join(f"{path} {why}" for path, why in list(found.left.items())[:3])
        more = f" and {len(found.left) - 3} more" if len(found.left) > 3 else ""
        notes.append(f"{len(found.left)} layers left out: {some}{more}")
    if done.constant:
        notes.append(f"{sum(done.constant.values())} channels are constant, and only shifted")
    return tuple(notes)


def _warnings(model: LiveModel, found: Found, done: Repaired) -> tuple[str, ...]:
    warnings = []
    if has_layer_norm(model.module.modules()):
        warnings.append(
            "the model has layer norms, which keep activations from collapsing by themselves; "
            "REPAIR was made for nets with batch norms or none, so compare scores before and after"
        )
    worst = max(done.off.values(), default=0.0)
    if worst > 0.05:
        warnings.append(
            f"after the repair a mean is still {worst:.2g} standard deviations from its target; "
            "merged=measured with passes=each is exact"
        )
    return tuple(warnings)
