"""Exact gradients of one example at a time, for every statistic that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence._objective import Example, Loss, kind_of, predict
from mergewise.evidence.models._differentiable import check_differentiable, differentiable
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._sites import Sites, sites_of
from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.evidence.statistics._gradient_base import GradientStatistic, option
from mergewise.evidence.statistics._gradient_groups import (
    Group,
    Run,
    Watch,
    group,
    wants,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """How much went through.

    Attributes:
        examples: examples.
        tokens: tokens of texts; one an example for anything else.
        backward: backward passes.
        skipped: examples without a prediction, such as a text of one token; not counted.
    """

    examples: int
    tokens: int
    backward: int
    skipped: int = 0


def run_examples(
    model: LiveModel,
    examples: Iterable[Example],
    runs: Sequence[Run],
    *,
    sites: Sites | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    done: Callable[[Example], None] | None = None,
) -> Seen:
    """Feed statistics with the gradients of each example's loss, one example at a time.

    The loss of a causal language model is the negative log-likelihood of its tokens, of a
    classifier that of its class, in nats; by the options `labels`, `reduction` and `samples` of
    each statistic. Statistics with the same options share their backward passes. The module is
    left as it was found: its mode, data types, `requires_grad` and `.grad`.

    Args:
        examples: unpadded; `examples_of` makes them from a batch.
        runs: statistics of need ``gradients``, each with its pass.
        sites: of the module; found here by default, under the names the model is saved by.
        loss: of one example, a scalar with a graph, in place of the usual ones.
        seed: of sampled labels, which depend on it and on the example's key alone.
        done: called after every example.

    Raises:
        EvidenceError: for options that do not fit, a model that cannot be differentiated here,
            or no example at all.
        DataError: if labels are missing or do not fit.
        NonFiniteError: if a loss or a gradient is not finite.
    """
    check_runs(model, runs, loss)
    runner = _Runner(model, runs, sites or sites_of(model.module), loss, seed)
    try:
        with differentiable(model.module, runner.wanted):
            for example in examples:
                runner.one(example)
                if done is not None:
                    done(example)
            for each in runner.groups:
                each.flush()
    finally:
        runner.watch.close()
    if runner.examples == 0:
        raise EvidenceError(
            f"no examples: the data set, or this share of it, is empty ({runner.skipped} examples "
            "have fewer than two tokens)"
        )
    return Seen(runner.examples, runner.tokens, runner.backward, runner.skipped)


def check_runs(model: LiveModel, runs: Sequence[Run], loss: Loss | None = None) -> None:
    """Find before the pass what would fail in it.

    Raises:
        EvidenceError: see `run_examples`.
    """
    check_differentiable(model)
    if loss is None:
        kind_of(model.module)
    for statistic, run in runs:
        if isinstance(statistic, GradientStatistic):
            statistic.check(run.options)
        labels = option(run.options, "labels", "data")
        if loss is not None and labels != "data":
            raise EvidenceError(
                f"{statistic.name}: `labels: {labels}` needs the model's distribution, which a "
                "loss of your own does not tell; set `labels: data`"
            )


class _Runner:
    def __init__(
        self, model: LiveModel, runs: Sequence[Run], sites: Sites, loss: Loss | None, seed: int
    ) -> None:
        self.module, self.device, self.loss = model.module, model.device, loss
        self.kind = None if loss is not None else kind_of(model.module)
        self.names = sites.names
        self.weights: dict[str, Tensor] = {}
        self.groups = group(runs, self.weights, seed)
        self.wanted = {
            name: parameter
            for name, parameter in model.module.named_parameters()
            if any(g.wants(part.tensor) for g in self.groups for part in self.names.of(name))
        }
        self.watch = Watch(self.groups, sites)
        for statistic, run in runs:
            self._check_covers(statistic, run)
        self.examples = self.tokens = self.backward = self.skipped = 0

    def one(self, example: Example) -> None:
        """Feed everybody with one example."""
        if not self.weights:
            self._note_weights()
        example = example.to(self.device)
        self.watch.begin()
        losses = self._losses(example)
        if not losses:
            self.skipped += 1
            return
        for i, (served, weight, value) in enumerate(losses):
            self._backward(example, served, weight, value, keep=i + 1 < len(losses))
        for served in self.groups:
            served.end_example(self.weights)
            self.watch.end(served)
        self.examples += 1
        self.tokens += example.tokens

    def _check_covers(self, statistic: Statistic, run: Pass) -> None:
        names = (part.tensor for name in self.wanted for part in self.names.of(name))
        if any(wants(statistic, run, name) for name in names) or self.watch.serves(statistic):
            return
        pattern = option(run.options, "tensors", None)
        raise EvidenceError(
            f"{statistic.name}: no tensor of the model is described"
            + (f"; `tensors: {pattern}` matches none" if pattern else "")
        )

    def _note_weights(self) -> None:
        for name, parameter in self.wanted.items():
            self.weights.update(self.names.split(name, parameter.detach()))

    def _losses(self, example: Example) -> list[tuple[Group, float, Tensor]]:
        if self.loss is not None:
            value = self.loss(self.module, example)
            return [(served, 1.0, value) for served in self.groups]
        found = predict(self.module, example, self.kind)
        if not len(found.log_probabilities):
            return []
        return [
            (served, weight, -found.likelihood(labels, served.mean))
            for served in self.groups
            for weight, labels in served.choice.draws(found, example.key)
        ]

    def _backward(
        self, example: Example, served: Group, weight: float, value: Tensor, keep: bool
    ) -> None:
        if not torch.isfinite(value):
            raise NonFiniteError(f"example {example.key}: its loss is {float(value.detach())}")
        tensors = [*self.wanted.values(), *self.watch.leaves]
        self.watch.serving = (served, weight)
        found = torch.autograd.grad(
            value, tensors, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
        self.backward += 1
        gradients: dict[str, Tensor] = {}
        for name, gradient in zip(self.wanted, found, strict=False):
            if not torch.isfinite(gradient).all():
                raise NonFiniteError(f"example {example.key}: the gradient of {name} is not finite")
            gradients.update(self.names.split(name, gradient))
        served.give(gradients, weight)
