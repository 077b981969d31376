"""Feed forward statistics: hooks on modules, rows of real tokens, sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence.models._call import call
from mergewise.evidence.models._experts import expert_rows
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._sites import Site, Sites, Tokens, input_rows, output_rows
from mergewise.evidence.statistics._base import Pass, Statistic

if TYPE_CHECKING:
    from torch import Tensor, nn

Outputs = dict[tuple[str, int], "Tensor"]


@dataclass(frozen=True)
class Job:
    """A statistic, its pass, and the sites it describes, by tensor."""

    statistic: Statistic
    run: Pass
    sites: Mapping[str, Site]


def job(statistic: Statistic, run: Pass, sites: Iterable[Site]) -> Job:
    """A job with every site that is wanted; of a tied tensor, one use: a matrix before others."""
    chosen: dict[str, Site] = {}
    for site in sites:
        before = chosen.get(site.tensor)
        if (before is None or (site.matrix and not before.matrix)) and statistic.wants(
            site, run.options
        ):
            chosen[site.tensor] = site
    return Job(statistic, run, chosen)


class Forward:
    """Hooks on a model; between `__enter__` and `__exit__` every batch is added up.

    Args:
        others: for statistics of two models, the second one and its sites.

    Attributes:
        unplaced: modules whose padding could not be told from real positions.
        odd: tensors whose module gave another number of channels than the weight has.
    """

    def __init__(
        self, model: LiveModel, jobs: Sequence[Job], others: tuple[LiveModel, Sites] | None = None
    ) -> None:
        self.model, self.jobs = model, jobs
        self.unplaced: set[str] = set()
        self.odd: set[str] = set()
        self._tokens = Tokens()
        self._other = None if others is None else _Other(others, _paired(jobs))
        self._others: Outputs = {}
        self._calls: dict[str, int] = {}
        self._last: tuple[Any, Any, Tensor] | None = None
        self._listening = False

    @contextmanager
    def hooked(self) -> Iterator[Forward]:
        """With the hooks in place."""
        handles = [
            module.register_forward_hook(self._hook(uses), with_kwargs=True)
            for module, uses in _by_module(self.jobs).items()
        ]
        try:
            yield self
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def batch(
        self,
        inputs: Mapping[str, Tensor],
        mask: Tensor | None,
        run: Callable[[], Any] | None = None,
    ) -> None:
        """Run one batch through the model.

        Args:
            run: what runs a part of it instead, on this batch.

        Raises:
            NonFiniteError: if an activation is NaN or infinite.
        """
        self._tokens = Tokens(mask)
        self._calls = {}
        self._others = {} if self._other is None else self._other.outputs(inputs, mask)
        # the other model may be this one
        self._listening = True
        try:
            with torch.no_grad():
                call(self.model, inputs) if run is None else run()
        finally:
            self._listening, self._last = False, None
        for one in self.jobs:
            one.run.scratch.clear()

    def _hook(self, uses: Sequence[tuple[Job, Site]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._listening:
                return
            given = _first([*args, *kwargs.values()])
            found = _first([output])
            for one, site in uses:
                if site.kind == "expert":
                    self._expert(one, site, module, args)
                elif site.kind == "router":
                    self._router(one, site, given, output)
                else:
                    self._module(one, site, given, found)

        return hook

    def _module(self, one: Job, site: Site, given: Any, found: Any) -> None:
        reads = "outputs" if one.statistic.two_models else one.statistic.reads
        inputs = outputs = _nothing(found if given is None else given)
        if reads != "outputs" and given is not None and given.is_floating_point():
            inputs = self._rows(input_rows, site, given)
        if reads != "inputs" and found is not None:
            outputs = self._rows(output_rows, site, found)
        self._feed(one, site, inputs, outputs)

    def _expert(self, one: Job, site: Site, module: nn.Module, args: Any) -> None:
        inputs, outputs = expert_rows(site, module, args, self._tokens, one.statistic.reads)
        if len(inputs) or len(outputs):
            self._feed(one, site, inputs.float(), outputs.float())

    def _router(self, one: Job, site: Site, given: Any, output: Any) -> None:
        logits = _first([output])
        # expected: (logits, weights, chosen experts), or logits alone
        several = isinstance(output, tuple)
        silent = several and all(v.is_floating_point() for v in output if _is_tensor(v))
        if logits is None or logits.shape[-1] != site.channels[1] or silent:
            self.odd.add(site.tensor)
            return
        flat = logits.reshape(-1, logits.shape[-1])
        routed = _routed(output, flat, self.model)
        rows = [self._tokens.rows(value.reshape(len(flat), -1)) for value in (flat, *routed)]
        one.statistic.routing(one.run, site, rows[0].float(), rows[1], rows[2].float())
        self._module(one, site, given, logits)

    def _feed(self, one: Job, site: Site, inputs: Tensor, outputs: Tensor) -> None:
        wide = [(inputs, site.channels[0]), (outputs, site.channels[1])]
        if any(len(rows) and rows.shape[-1] != count for rows, count in wide):
            self.odd.add(site.tensor)
            return
        if one.statistic.two_models:
            self._pair(one, site, outputs)
        else:
            one.statistic.forward(one.run, site, inputs, outputs)
        one.run.sums.count(site.tensor, max(len(inputs), len(outputs)))

    def _pair(self, one: Job, site: Site, outputs: Tensor) -> None:
        call_number = self._calls.get(site.tensor, 0)
        self._calls[site.tensor] = call_number + 1
        others = self._others.get((site.tensor, call_number))
        if others is None or len(others) != len(outputs):
            raise EvidenceError(
                f"{one.statistic.name}: {site.tensor} has {len(outputs)} rows of outputs in one "
                f"model and {0 if others is None else len(others)} in the other; the two must "
                "have the same modules"
            )
        one.statistic.pair(one.run, site, outputs, others.to(outputs.device))

    def _rows(self, rows_of: Callable[..., Tensor], site: Site, value: Tensor) -> Tensor:
        """Rows in float32; those of the same tensor are made once, for query, key and value."""
        mark = (_version(value), *((rows_of, site.module) if site.kind in ("conv", "norm") else ()))
        if self._last is not None and self._last[0] is value and self._last[1] == mark:
            return self._last[2]
        self._tokens.unplaced = False
        rows = rows_of(site, value.detach(), self._tokens).float()
        if self._tokens.unplaced:
            self.unplaced.add(site.path)
        if not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
            raise NonFiniteError(
                f"{self.model.name}: NaN or infinity at {site.path}; try --dtype float32, and "
                "`mergewise inspect` to see whether the weights are finite"
            )
        self._last = (value, mark, rows)
        return rows


def _by_module(jobs: Sequence[Job]) -> dict[nn.Module, list[tuple[Job, Site]]]:
    found: dict[nn.Module, list[tuple[Job, Site]]] = {}
    for one in jobs:
        for site in one.sites.values():
            found.setdefault(site.module, []).append((one, site))
    return found


def _first(values: Iterable[Any]) -> Any:
    """The first tensor of a call's arguments or results."""
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, tuple | list):
            return _first(value)
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _version(value: Tensor) -> int:
    """Changes with every operation in place, such as a residual that is added to its input."""
    return 0 if value.is_inference() else value._version


def _nothing(like: Tensor | None) -> Tensor:
    return torch.empty(0, device=None if like is None else like.device)


def _routed(output: Any, logits: Tensor, model: LiveModel) -> tuple[Tensor, Tensor]:
    """Experts chosen for each token and their weights: as the router says, else the top k."""
    parts = [v for v in output if isinstance(v, torch.Tensor)] if isinstance(output, tuple) else []
    chosen = next((v for v in parts if not v.is_floating_point()), None)
    if chosen is not None:
        weights = next((v for v in parts[1:] if v.is_floating_point()), None)
        if weights is not None and weights.numel() == chosen.numel():
            return chosen, weights
        if weights is not None and weights.numel() == logits.numel():
            return chosen, weights.reshape(logits.shape).gather(1, chosen.reshape(len(logits), -1))
    config = getattr(model.module, "config", None)
    count = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k", None) or 1
    best = torch.softmax(logits.float(), dim=-1).topk(int(count), dim=-1)
    return best.indices, best.values / best.values.sum(dim=-1, keepdim=True)


def _paired(jobs: Sequence[Job]) -> set[tuple[str, str]]:
    two = [one for one in jobs if one.statistic.two_models]
    return {(site.tensor, site.kind) for one in two for site in one.sites.values()}


@dataclass
class _Other:
    """The second model: its outputs of a batch, kept until the first model has run it."""

    known: tuple[LiveModel, Sites]
    wanted: set[tuple[str, str]]
    found: Outputs = field(default_factory=dict)

    def outputs(self, inputs: Mapping[str, Tensor], mask: Tensor | None) -> Outputs:
        self.found = {}
        tokens = Tokens(mask)
        model, sites = self.known
        handles = [
            site.module.register_forward_hook(self._hook(site, tokens))
            for site in sites
            if (site.tensor, site.kind) in self.wanted
        ]
        try:
            with torch.no_grad():
                call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return self.found

    def _hook(self, site: Site, tokens: Tokens) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = _first([output])
            if value is not None:
                number = sum(1 for tensor, _ in self.found if tensor == site.tensor)
                rows = output_rows(site, value.detach(), tokens).float()
                self.found[site.tensor, number] = rows

        return hook
