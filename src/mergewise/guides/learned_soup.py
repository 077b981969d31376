"""Learned soups: weights of every tensor, or layer, by gradient descent on held-out examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mergewise._lazy import torch
from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.errors import GuideError
from mergewise.evidence import Data
from mergewise.guides._base import Ask, Guide, Guided, Map, Needs
from mergewise.guides._by_layer import by_layer
from mergewise.guides._document import Values, explicit
from mergewise.guides._learning import Average, Learned, learn
from mergewise.guides._losses import feeder, look_at, opened
from mergewise.guides._weighting import commented
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe

_MOST = 9_000
"""Numbers that a recipe holds."""
_HELD = 1 << 30
"""Bytes of examples that are kept in memory, so that they can be shuffled."""


class LearnedSoup(Guide):
    """Softmax weights over the models, learned on labelled examples that are held out."""

    name = "learned_soup"
    summary = "weights by tensor or layer, learned by gradient on held-out examples"
    data = "labelled"
    source = "Model soups, Wortsman et al. 2022, arXiv 2203.05482"
    variant = (
        "the official code's optimiser, in evaluation mode and float32; whole batches are "
        "shuffled; memory of two models instead of all"
    )
    verified = "paper"
    writes = "weight"
    based = False
    params = {
        "granularity": Param(
            str, "auto", "what has weights of its own; auto: every tensor if a recipe holds that "
            "many numbers, else every layer", choices=("auto", "tensor", "layer", "model"),
        ),
        "lr": Param(float, 0.05, "AdamW's, of the softmax's logits", gt=0),
        "epochs": Param(int, 5, "passes over the examples", ge=1),
        "temperature": Param(
            bool, True, "a factor of the model's outputs is learned along, and dropped"
        ),
        "seed": Param(int, 0, "of the order of batches", ge=0),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        stage = recipe.output
        if stage.method != "linear":
            return f"it learns the weights of `linear`, and the method here is {stage.method}"
        if stage.base_model is not None:
            return (
                "linear has no base; remove `base_model`, and list it under `models` if it is to "
                "take part"
            )
        return None

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        kind = _granularity(ask)
        found = _learned(ask, kind)
        text, recipe, notes = _written(self, ask, found, kind)
        told = [
            f"loss {found.before:.6g} with equal weights, {found.after:.6g} with those learned, "
            "nats a prediction, on the examples they were learned on",
            f"in each epoch: {', '.join(f'{loss:.6g}' for loss in found.epochs)}; "
            f"beta {found.beta:.6g} at last",
            f"weights by {kind}",
        ]
        warnings = ask.warnings
        if found.after >= found.before:
            warnings += ("the loss did not fall; try another lr, or more examples",)
        return Guided(commented(text, told), recipe, _maps(ask, found), (*told, *notes), warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "theta_l = sum_i w_li theta_i,l; w_l = softmax(a_l), a = 0 at first; l a tensor, a "
            "layer, or the whole model.\n"
            "a and beta by AdamW (no weight decay) on the mean negative log-likelihood of "
            "softmax(beta f(x; theta)); beta = 1 at first."
        )


def _granularity(ask: Ask) -> str:
    """What has weights of its own.

    Raises:
        GuideError: if a recipe does not hold so many.
    """
    wanted = str(ask.settings.granularity)
    counts = {k: len(set(_groups(ask, k).values())) * len(ask.experts) for k in ("tensor", "layer")}
    if wanted == "auto":
        wanted = "tensor" if counts["tensor"] <= _MOST else "layer"
    if counts.get(wanted, 0) > _MOST:
        raise GuideError(
            f"learned_soup: {counts[wanted]:,} weights by {wanted} do not fit a recipe, which "
            f"holds {_MOST:,}; set granularity={'layer' if wanted == 'tensor' else 'model'}"
        )
    return wanted


def _groups(ask: Ask, kind: str) -> dict[str, str]:
    """The group of every tensor that is merged."""
    names = [name for name, tensor in ask.stage.tensors.items() if tensor.fate == "merge"]
    if kind == "model":
        return dict.fromkeys(names, "")
    if kind == "tensor":
        return {name: name for name in names}
    layers = {n: f"{layer_prefix(n)}{layer_index(n)}" for n in names if layer_prefix(n) is not None}
    return {name: layers.get(name, name) for name in names}


def _learned(ask: Ask, kind: str) -> Learned:
    sources: list[Data] = []
    for expert in ask.experts:
        if ask.data[expert.label] not in sources:
            sources.append(ask.data[expert.label])
    for data in sources:
        look_at(ask, data)
    checkpoints = [expert.checkpoint for expert in ask.experts]
    model = opened(checkpoints[0], ask.options)
    average = Average(model, checkpoints, _groups(ask, kind))
    feeders = [feeder(model, data, ask.options) for data in sources]
    settings = ask.settings
    return learn(
        model, average, _Batches(feeders, settings.seed), lr=settings.lr, epochs=settings.epochs,
        beta=settings.temperature, tell=ask.tell,
    )  # fmt: skip


class _Batches:
    """Batches of all data sets, shuffled for each epoch if they fit in memory.

    In the data's order the last batches would have the last word, those of one task perhaps.
    """

    def __init__(self, feeders: Sequence[Any], seed: int) -> None:
        self._feeders, self._seed = feeders, seed
        self._held: list[Any] | None = []
        self._bytes = 0

    def __call__(self, epoch: int) -> Iterator[Any]:
        if epoch == 0 or not self._held:
            yield from self._first()
            return
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        for i in torch.randperm(len(self._held), generator=draw).tolist():
            yield self._held[i]

    def _first(self) -> Iterator[Any]:
        """In order, a batch of each data set at a time."""
        if self._held:
            yield from self._held
            return
        for fed in _in_turn(self._feeders):
            self._bytes += sum(value.nbytes for value in fed.inputs.values())
            if self._bytes > _HELD:
                self._held = None
            if self._held is not None:
                self._held.append(fed)
            yield fed


def _in_turn(feeders: Sequence[Any]) -> Iterator[Any]:
    running = [iter(one) for one in feeders]
    while running:
        for one in list(running):
            fed = next(one, None)
            if fed is None:
                running.remove(one)
            else:
                yield fed


def _written(guide: Guide, ask: Ask, found: Learned, kind: str) -> tuple[str, Recipe, list[str]]:
    count = len(ask.experts)
    each = [{name: row[i] for name, row in found.weights.items()} for i in range(count)]
    if kind == "tensor":
        return explicit(guide, ask, [Values("weight", own, 1 / count) for own in each])
    other = [next(iter(own.values())) if kind == "model" else 1 / count for own in each]
    plain = [Values("weight", {}, rest) for rest in other]
    return explicit(guide, ask, plain, None if kind == "model" else by_layer(ask, each, other))


def _maps(ask: Ask, found: Learned) -> tuple[Map, ...]:
    """The weights in layers, for a picture."""
    maps = []
    for i, expert in enumerate(ask.experts):
        values: dict[str, dict[str, float]] = {}
        for name, row in found.weights.items():
            prefix, index = layer_prefix(name), layer_index(name)
            if prefix is not None:
                layer = f"{prefix}{index}"
                part = name.removeprefix(f"{layer}.").removesuffix(".weight")
                values.setdefault(layer, {})[part] = row[i]
        maps.append(Map(expert.label, "weight", values))
    return tuple(maps)
