"""Forward statistics of layers that stand behind pruned ones, as LEWIS's reference has it.

Layer by layer: what a layer's modules see is measured with the layer as it is, then its matrices
are pruned by Wanda's criterion on these inputs, and the layer is run again for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mergewise.checkpoint import layer_prefix
from mergewise.errors import EvidenceError
from mergewise.evidence.models._prune import PRUNED_KINDS, prune, weight_of
from mergewise.evidence.models._walk import Layer, Walk
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._forward import Forward, Job, job
from mergewise.evidence.statistics._scoped import Scoped
from mergewise.evidence.statistics._sums import MemorySums
from mergewise.methods import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._call import Fed
    from mergewise.evidence.models._live import LiveModel
    from mergewise.evidence.models._sites import Site, Sites
    from mergewise.evidence.statistics._request import Request

Told = Callable[[int, int, "Fed"], None]


def sparsity_of(asked: Sequence[Request]) -> float | None:
    """The share that is pruned, for the statistics that were asked for; None for none.

    Raises:
        EvidenceError: if they differ in it.
    """
    values = {request.options.get("pruned") for request in asked}
    if len(values) > 1:
        names = ", ".join(request.statistic.name for request in asked)
        raise EvidenceError(
            f"{names}: one model cannot be pruned and as it is at once; give all of them the same "
            "`pruned`, or collect them into files of their own"
        )
    return next(iter(values), None)


def in_layers(sites: Sites) -> list[Site]:
    """The sites that lie in repeated layers."""
    return [site for site in sites if layer_prefix(site.parameter) is not None]


@dataclass
class PrunedWalk:
    """Feeds jobs layer by layer, and prunes each layer behind itself.

    Args:
        keep: give the model its weights back afterwards; costs a copy of its layers.
        told: called after every batch with the layer's number, of how many, and the batch.

    Attributes:
        unplaced, odd: as `Forward` has them.
    """

    model: LiveModel
    sites: Sites
    jobs: Sequence[Job]
    sparsity: float
    keep: bool
    told: Told
    unplaced: set[str] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)

    def run(self, batches: Sequence[Fed]) -> None:
        """Measure every layer.

        Raises:
            EvidenceError: if the model cannot be walked.
            NonFiniteError: if an activation is NaN or infinite.
        """
        walk = Walk(self.model, self.sites, batches)
        with self._restored():
            for k in range(len(walk.layers)):
                self._layer(walk, k)

    def _layer(self, walk: Walk, k: int) -> None:
        layer = walk.enter(k)
        jobs = [_within(one, layer) for one in self.jobs]
        own = _moments(self.model, self.sites, layer)
        forward = Forward(self.model, [*jobs, own])
        with forward.hooked():
            for fed, run in walk.calls():
                forward.batch(fed.inputs, fed.mask, run)
                self.told(k + 1, len(walk.layers), fed)
        self.unplaced |= forward.unplaced
        self.odd |= forward.odd
        # nothing is run behind the last one
        if k + 1 < len(walk.layers):
            self._prune(own)

    def _prune(self, own: Job) -> None:
        for site, squares in _driven(own):
            if self.keep:
                self._kept.setdefault(site, weight_of(site).clone())
            prune(site, squares, self.sparsity)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        self._kept: dict[Site, Tensor] = {}
        try:
            yield
        finally:
            for site, value in self._kept.items():
                weight_of(site).copy_(value)


def _within(one: Job, layer: Layer) -> Job:
    sites = {tensor: site for tensor, site in one.sites.items() if tensor in layer.tensors}
    return Job(one.statistic, one.run, sites)


def _moments(model: LiveModel, sites: Sites, layer: Layer) -> Job:
    """What decides on pruning; only for one layer at a time."""
    from mergewise.evidence.statistics import get_statistic

    statistic = get_statistic("input_moments")
    sums = Scoped(MemorySums(), statistic.name)
    run = Pass(Settings({"pruned": None}), model.module, sums)
    return job(
        statistic,
        run,
        (s for s in sites if s.tensor in layer.tensors and s.kind in PRUNED_KINDS),
    )


def _driven(own: Job) -> Iterator[tuple[Site, Tensor]]:
    """Sites that were reached, and the sums of squares of their inputs."""
    sums = own.run.sums
    assert isinstance(sums, Scoped) and sums.store is not None
    reached: Mapping[str, Mapping[str, int]] = sums.counts
    for tensor, site in own.sites.items():
        if reached.get(tensor, {}).get("tokens"):
            yield site, sums.store.get(tensor, f"{own.statistic.name}.sum_squares")
