"""Gram matrices of what enters each layer of several models behind merged layers (RegMean++).

One model is held in memory. In front of the layers it has merged weights. For each layer in turn,
every expert's own layer is put in and run on that expert's data, which came through the merged
layers before it; then the layer is merged, and the merged one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError
from mergewise.evidence._data import Data
from mergewise.evidence._inputs import Feeder, Reading
from mergewise.evidence.models import _live
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._names import Part
from mergewise.evidence.models._sites import Site, Sites, sites_of
from mergewise.evidence.models._walk import Layer, Walk
from mergewise.evidence.statistics import get_statistic
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._budget import forward_bytes, make_sums
from mergewise.evidence.statistics._evidence import Evidence, load_evidence
from mergewise.evidence.statistics._file import write_evidence
from mergewise.evidence.statistics._forward import Forward, Job, job
from mergewise.evidence.statistics._record import Made, entries_of, record_of
from mergewise.evidence.statistics._request import Request
from mergewise.evidence.statistics._scoped import Scoped

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.statistics._sums import StoredSums

STATISTIC = "input_gram"
PROPAGATION = "merged"
"""What a file's options say, so that it is not taken for one of whole models."""


class Weights(Protocol):
    """The experts' weights, and how they are merged; names are the checkpoints'."""

    names: frozenset[str]
    """Tensors that are merged."""

    def own(self, expert: int, name: str) -> Tensor:
        """A tensor of an expert."""

    def merged(self, name: str, grams: Sequence[Tensor] | None, turned: bool) -> Tensor:
        """A tensor of the result, with each expert's Gram matrix per token, or without any."""


@dataclass
class Member:
    """An expert in the walk.

    Attributes:
        live: its name and tokenizer, with the module that all share.
    """

    live: _live.LiveModel
    data: Data
    feeder: Feeder
    batches: list[Fed]
    job: Job
    walk: Walk | None = None

    def mean(self, tensor: str) -> Tensor | None:
        """The Gram matrix per token, as a reader of its file finds it; None if none came by."""
        scoped = self.job.run.sums
        assert isinstance(scoped, Scoped) and scoped.store is not None
        count = scoped.counts.get(tensor, {}).get("tokens", 0)
        if not count:
            return None
        total = scoped.store.get(tensor, f"{STATISTIC}.gram")
        return (total.double() * (1.0 / count)).float()


class MergedGrams:
    """Walks several experts through their merge at once.

    Args:
        model: in memory; its weights are replaced.
        stored: names of tensors in the checkpoints.
        reading: how data is read.
        request: of the statistic, with its options.
        told: called with a line before each layer.
    """

    def __init__(
        self,
        model: _live.LiveModel,
        stored: Sequence[str],
        weights: Weights,
        reading: Reading,
        request: Request,
        told: Callable[[str], None],
    ) -> None:
        self._model, self._weights, self._reading = model, weights, reading
        self._request, self._told = request, told
        self.sites = sites_of(model.module, stored)
        self._places = _places(model, self.sites)
        self._members: list[Member] = []

    def run(
        self,
        experts: Sequence[tuple[str, Checkpoint, Data]],
        out: Sequence[Path],
        memory: int | None = None,
        trust_remote_code: bool = False,
    ) -> list[Evidence]:
        """Collect, and write a file for each expert; none before all is known.

        Args:
            experts: each one's name, files and data.
            memory: bytes that the sums may take before they are kept on disk.

        Raises:
            DataError: if data is empty, or cannot be read.
            EvidenceError: if the model cannot be walked layer by layer.
            NonFiniteError: if an activation is NaN or infinite.
            OutputError: if a file cannot be written.
        """
        walked = frozenset[str]()
        try:
            for one in experts:
                self._members.append(self._member(*one, out[0], len(experts), memory,
                                                  trust_remote_code))  # fmt: skip
            for name in self._places:
                if name in self._weights.names:
                    self._put(name, self._weights.merged(name, None, False))
            walked = self._walk()
            return [self._write(m, p, walked) for m, p in zip(self._members, out, strict=True)]
        finally:
            for member in self._members:
                _store(member.job).close()

    def _member(
        self,
        name: str,
        checkpoint: Checkpoint,
        data: Data,
        out: Path,
        count: int,
        memory: int | None,
        trust: bool,
    ) -> Member:
        folder = checkpoint.folder
        role = _role(self._model)
        live = replace(
            self._model,
            name=name,
            tokenizer=_live._tokenizer(checkpoint.tokenizer_folder, role, trust),
            processor=_live._processor(folder, role),
            fingerprint=_live.fingerprint_of(checkpoint.path),
            folder=folder,
            adapter=checkpoint.adapter,
        )
        feeder = Feeder(data, live, self._reading, role == "text_classifier")
        batches = list(feeder)
        if not batches:
            raise EvidenceError(f"{name}: {data.name} has no tokens; give other data")
        statistic = self._request.statistic
        run = Pass(
            self._request.settings,
            live.module,
            Scoped(None, statistic.name),
            getattr(live.module, "config", None),
        )
        one = job(statistic, run, self._described())
        sizes = [forward_bytes(one, False)] * count
        run.sums.store = make_sums(  # type: ignore[attr-defined]
            sizes, memory, out.absolute().parent, False, live.device
        )
        return Member(live, data, feeder, batches, one)

    def _described(self) -> Iterator[Site]:
        return (site for site in self.sites if site.tensor in self._weights.names)

    def _walk(self) -> frozenset[str]:
        """All layers; the names of the tensors in them."""
        for member in self._members:
            member.walk = Walk(member.live, self.sites, member.batches, others=True)
        walks = [member.walk for member in self._members if member.walk is not None]
        paths = {tuple(layer.path for layer in walk.layers) for walk in walks}
        if len(paths) > 1:
            raise EvidenceError(
                f"{self._model.name} runs other layers on the data of one expert than on that of "
                "another; its layers cannot be walked for both"
            )
        layers = walks[0].layers
        for k, layer in enumerate(layers):
            self._told(f"layer {k + 1} of {len(layers)}: {layer.path}")
            self._layer(k, layer)
        return frozenset(name for layer in layers for name in layer.tensors)

    def _layer(self, k: int, layer: Layer) -> None:
        names = sorted(layer.tensors & self._weights.names & self._places.keys())
        for i, member in enumerate(self._members):
            assert member.walk is not None
            member.walk.enter(k)
            for name in names:
                self._put(name, self._weights.own(i, name))
            _measure(member, layer)
        turned = {s.tensor for s in self.sites if s.kind == "conv1d_transposed"}
        for name in names:
            grams = [member.mean(name) for member in self._members]
            known = [gram for gram in grams if gram is not None]
            every = known if len(known) == len(grams) else None
            self._put(name, self._weights.merged(name, every, name in turned))

    def _put(self, name: str, value: Tensor) -> None:
        held, part = self._places[name]
        with torch.no_grad():
            part.of(held).copy_(value)

    def _write(self, member: Member, out: Path, walked: frozenset[str]) -> Evidence:
        made = Made(member.live, None, self.sites, [member.job], member.feeder, _dtype(member.live))
        made.records = sum(fed.records for fed in member.batches)
        made.sequences = sum(len(fed.keys) for fed in member.batches)
        made.tokens = sum(fed.tokens for fed in member.batches)
        sites = {name: site for name, site in member.job.sites.items() if name in walked}
        made.jobs = [Job(member.job.statistic, member.job.run, sites)]
        record = record_of([self._request], made, member.data, member.data.share, 0)
        record.statistics[STATISTIC].options["propagation"] = PROPAGATION
        write_evidence(out, record, entries_of(made.jobs))
        return load_evidence(out)


def gram_request(options: Mapping[str, Any]) -> Request:
    """The statistic, with its options complete."""
    from mergewise.evidence.statistics._request import requests

    [request] = requests(STATISTIC, {STATISTIC: options})
    return replace(request, statistic=get_statistic(STATISTIC))


def _measure(member: Member, layer: Layer) -> None:
    sites = {name: site for name, site in member.job.sites.items() if name in layer.tensors}
    forward = Forward(member.live, [Job(member.job.statistic, member.job.run, sites)])
    assert member.walk is not None
    with forward.hooked():
        for fed, run in member.walk.calls():
            forward.batch(fed.inputs, fed.mask, run)


def _places(model: _live.LiveModel, sites: Sites) -> dict[str, tuple[Tensor, Part]]:
    """Where each tensor of the checkpoint lies in memory."""
    module = model.module
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        part.tensor: (value.detach(), part)
        for name, value in held.items()
        for part in sites.names.of(name)
    }


def _role(model: _live.LiveModel) -> _live.Role:
    from mergewise.evidence.statistics._collect import role_of

    return role_of(model)


def _store(one: Job) -> StoredSums:
    assert isinstance(one.run.sums, Scoped) and one.run.sums.store is not None
    return one.run.sums.store


def _dtype(model: _live.LiveModel) -> str:
    kinds = (p.dtype for p in model.module.parameters() if p.is_floating_point())
    return str(next(kinds, "none")).removeprefix("torch.")
