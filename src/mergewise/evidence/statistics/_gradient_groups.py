"""Statistics that can share backward passes, and the hooks on outputs that feed some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.evidence._objective import Choice
from mergewise.evidence.models._sites import Site, Sites, Tokens, output_rows
from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.evidence.statistics._gradient_base import GradientPass, GradientStatistic, option

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = tuple[Statistic, Pass]

HOOKED = ("linear", "conv", "conv1d_transposed")


@dataclass
class Group:
    """Statistics whose gradients come from the same backward passes.

    Attributes:
        choice: of the labels.
        mean: the mean over the predictions of an example in place of the sum.
        batch: examples whose mean gradient is handed on as one; 0 hands on each example's.
        members: the statistics.
        weights: the model's tensors by name.
    """

    choice: Choice
    mean: bool
    batch: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    members: list[Run] = field(default_factory=list)
    _held: dict[str, Tensor] = field(default_factory=dict)
    _pending: int = 0

    def wants(self, tensor: str) -> bool:
        """Whether any statistic wants the gradient of this tensor."""
        return any(wants(statistic, run, tensor) for statistic, run in self.members)

    def give(self, gradients: Mapping[str, Tensor], weight: float) -> None:
        """One loss of the present example went backward."""
        if self.batch:
            self._hold(gradients, weight)
        else:
            self._feed(gradients, weight)

    def end_example(self, tensors: Iterable[str]) -> None:
        """All losses of the present example are through."""
        if not self.batch:
            self._count(tensors, "examples")
            return
        self._pending += 1
        if self._pending == self.batch:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held: the gradient of the batch's mean loss."""
        if self._pending:
            self._feed({name: g / self._pending for name, g in self._held.items()}, 1.0)
            self._count(self._held, "batches")
        self._held, self._pending = {}, 0

    def pass_of(self, run: Pass, weight: float) -> GradientPass:
        """What a member is told."""
        return GradientPass(run.options, run.model, run.sums, run.config, weight, self.weights)

    def _feed(self, gradients: Mapping[str, Tensor], weight: float) -> None:
        for statistic, run in self.members:
            chosen = {n: g for n, g in gradients.items() if wants(statistic, run, n)}
            if chosen:
                statistic.gradients(self.pass_of(run, weight), chosen)

    def _count(self, tensors: Iterable[str], unit: str) -> None:
        for tensor in tensors:
            for statistic, run in self.members:
                if wants(statistic, run, tensor):
                    run.sums.count(tensor, 1, unit)

    def _hold(self, gradients: Mapping[str, Tensor], weight: float) -> None:
        for name, gradient in gradients.items():
            if name in self._held:
                self._held[name].add_(gradient, alpha=weight)
            else:
                self._held[name] = gradient * weight


def wants(statistic: Statistic, run: Pass, tensor: str) -> bool:
    """Whether a statistic asks for the gradient of a tensor."""
    if not isinstance(statistic, GradientStatistic):
        return True
    return statistic.of_parameters and statistic.wants_tensor(tensor, run.options)


def group(runs: Sequence[Run], weights: Mapping[str, Tensor], seed: int) -> list[Group]:
    """The fewest groups for these statistics, by their options."""
    found: dict[Any, Group] = {}
    for statistic, run in runs:
        labels = option(run.options, "labels", "data")
        samples = option(run.options, "samples", 1) if labels == "model" else 1
        batched = option(run.options, "per", "example") == "batch"
        batch = option(run.options, "batch_size", 1) if batched else 0
        mean = option(run.options, "reduction", "sum") == "mean"
        new = Group(Choice(labels, samples, seed), mean, batch, weights)
        found.setdefault((labels, samples, batch, mean), new).members.append((statistic, run))
    return list(found.values())


class Watch:
    """Hooks on the outputs of modules; the group that is served gets their gradients.

    Attributes:
        serving: the group whose loss goes backward, and the loss's weight.
        leaves: outputs that depend on no parameter of interest; they have to be among what is
            differentiated for.
    """

    def __init__(self, groups: Sequence[Group], sites: Sites) -> None:
        self.serving: tuple[Group, float] | None = None
        self.leaves: list[Tensor] = []
        self._rows: dict[str, int] = {}
        self._readers = {
            (id(each), site.path): found
            for each in groups
            for site in sites
            if (found := _readers(each, site))
        }
        paths = {path for _, path in self._readers}
        self._handles = [
            site.module.register_forward_hook(self._hook(site))
            for site in {site.path: site for site in sites if site.path in paths}.values()
        ]
        self._sites = {site.tensor: site for site in sites if site.path in paths}

    def serves(self, statistic: Statistic) -> bool:
        """Whether a statistic is fed by any hook."""
        return any(reader is statistic for found in self._readers.values() for reader, _ in found)

    def begin(self) -> None:
        """A new example."""
        self.leaves, self._rows = [], {}

    def end(self, served: Group) -> None:
        """All losses of the present example are through for a group."""
        for tensor, site in self._sites.items():
            for _, run in self._readers.get((id(served), site.path), ()):
                run.sums.count(tensor, self._rows.get(tensor, 0), "tokens")
                run.sums.count(tensor, 1, "examples")

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, site: Site) -> Callable[[nn.Module, Any, Any], Any]:
        def hooked(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor):
                return None
            if not output.requires_grad:
                self.leaves.append(output.detach().requires_grad_())
                # a copy, since what follows may work in place
                output = self.leaves[-1].clone()
            rows = output.numel() // site.channels[1]
            self._rows[site.tensor] = self._rows.get(site.tensor, 0) + rows
            output.register_hook(lambda gradient: self._seen(site, gradient))
            return output

        return hooked

    def _seen(self, site: Site, gradient: Tensor) -> None:
        if self.serving is None:
            return
        served, weight = self.serving
        readers = self._readers.get((id(served), site.path), ())
        rows = output_rows(site, gradient, Tokens()) if readers else gradient
        for statistic, run in readers:
            statistic.output_gradients(served.pass_of(run, weight), site, rows)


def _readers(group: Group, site: Site) -> list[tuple[GradientStatistic, Pass]]:
    if site.kind not in HOOKED:
        return []
    return [
        (statistic, run)
        for statistic, run in group.members
        if isinstance(statistic, GradientStatistic)
        and statistic.of_outputs
        and statistic.wants(site, run.options)
    ]
