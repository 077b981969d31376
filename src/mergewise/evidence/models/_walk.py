"""A model walked layer by layer: each layer is run on what the layers before it give by then.

Whoever walks may replace a layer's weights before the next one is entered. The input of each
layer is kept for every batch and replaced by the next one's, so that no layer is run more often
than needed; what a model does between its layers is run again from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import layer_index, layer_prefix
from mergewise.errors import EvidenceError
from mergewise.evidence.models._call import call
from mergewise.evidence.models._calls import Call, Key, main_output, scaled

if TYPE_CHECKING:
    from torch import nn

    from mergewise.evidence.models._call import Fed
    from mergewise.evidence.models._live import LiveModel
    from mergewise.evidence.models._sites import Sites

Run = Callable[[], Any]
_HALF = 0.5
"""What layers' outputs are scaled by to see what else depends on them."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A repeated layer, or one matrix that is used behind the first of them.

    Attributes:
        path: of its module, such as ``model.layers.3``.
        tensors: of the checkpoint that lie in it.
    """

    path: str
    module: nn.Module = field(repr=False)
    tensors: frozenset[str] = field(repr=False)


class Walk:
    """The layers of one model on some batches, in the order in which it runs them.

        for k, layer in enumerate(walk.layers):
            walk.enter(k)
            for fed, run in walk.calls():
                run()               # with whatever hooks and weights
            ...                     # weights of `layer` may be replaced now

    Args:
        model: with its weights in memory.
        sites: of its module.
        batches: kept as they are; none may be empty.
        others: matrices behind the first layer, such as a head, are layers too.

    Attributes:
        layers: as they are run.
        chained: by layer, whether its input is nothing but the output of the one before.

    Raises:
        EvidenceError: if the model has no repeated layers, or runs one of them more than once.
    """

    def __init__(
        self, model: LiveModel, sites: Sites, batches: Sequence[Fed], others: bool = False
    ) -> None:
        self.model, self.batches = model, batches
        if any(p.is_meta for p in model.module.parameters()):
            raise EvidenceError(
                f"{model.name} is read from disk as it runs; to replace its layers one by one its "
                "weights must be in memory: leave out --offload"
            )
        known = _candidates(model.module, sites, others)
        first = _record(model, known, batches[0])
        _check(model, known, first)
        self.layers = tuple(first)
        self.chained, self._keys = self._look(first)
        self._alike = self._models(first)
        self._calls: dict[int, list[Call]] = {}
        self._inputs: list[Any] = []
        self._at = -1

    def enter(self, k: int) -> Layer:
        """Make ready the inputs of layer `k`; layers before it have their weights for good."""
        if k != self._at:
            if self.chained[k] and self._at == k - 1 and k in self._calls:
                self._pass_on(k)
            else:
                self._capture(k)
            for done in [known for known in self._calls if known < k]:
                del self._calls[done]
            self._at = k
        return self.layers[k]

    def calls(self) -> Iterator[tuple[Fed, Run]]:
        """The batches, each with what runs the layer that was entered on it."""
        for fed, given, value in zip(
            self.batches, self._calls[self._at], self._inputs, strict=True
        ):
            yield fed, self._run(self._at, given, value)

    def _run(self, k: int, given: Call, value: Any) -> Run:
        def run() -> Any:
            args, kwargs = given.filled(self._keys[k], value)
            with torch.no_grad():
                return self.layers[k].module(*args, **kwargs)

        return run

    def _pass_on(self, k: int) -> None:
        """The outputs of the layer before, as its weights are now."""
        self._inputs = [
            main_output(self._run(k - 1, given, value)())
            for given, value in zip(self._calls[k - 1], self._inputs, strict=True)
        ]

    def _capture(self, k: int) -> None:
        """Run from the start to layer `k`, and on until every layer chained to it is provided for.

        Most are given the very objects that the first was given, and need not be reached.
        """
        chain = [k]
        while chain[-1] + 1 < len(self.layers) and self.chained[chain[-1] + 1]:
            chain.append(chain[-1] + 1)
        alike = {i: self._alike[i] if self._alike[i] >= k else i for i in chain}
        reached = sorted(set(alike.values()))
        self._calls = {i: [] for i in chain}
        self._inputs = []
        for fed in self.batches:
            found = self._reach(fed, reached)
            self._inputs.append(found[k].get(self._keys[k]))
            emptied = {i: found[i].emptied(self._keys[i]) for i in reached}
            for i in chain:
                self._calls[i].append(emptied[alike[i]])

    def _reach(self, fed: Fed, wanted: Sequence[int]) -> dict[int, Call]:
        """What layers are called with on a batch."""
        layers = [self.layers[i] for i in wanted]
        found = _record(self.model, layers, fed, stop=layers[-1])
        for layer in layers:
            if layer not in found:
                raise EvidenceError(
                    f"{self.model.name}: {layer.path} ran on the first batch, and not on "
                    "another; its layers cannot be walked"
                )
        return {i: found[layer].calls[0] for i, layer in zip(wanted, layers, strict=True)}

    def _look(self, first: Mapping[Layer, _Seen]) -> tuple[list[bool], list[Key]]:
        """Which layers take nothing but the output of the one before, and under which name."""
        halved = _record(self.model, list(first), self.batches[0], scale=_HALF)
        chained, keys = [], []
        before: _Seen | None = None
        for layer, seen in first.items():
            key = None if before is None else seen.calls[0].key_of(before.output)
            rest = [known[layer].calls[0].emptied(key) for known in (first, halved)]
            chained.append(key is not None and rest[0].same(rest[1]))
            keys.append(key)
            before = seen
        # a layer that starts a chain takes its input as those behind it do
        for k, linked in enumerate(chained):
            if not linked:
                behind = keys[k + 1] if k + 1 < len(keys) and chained[k + 1] else None
                keys[k] = behind if first[self.layers[k]].calls[0].has(behind) else None
        return chained, keys

    def _models(self, first: Mapping[Layer, _Seen]) -> list[int]:
        """For every layer, the first of its chain that was given the same objects."""
        found: list[int] = []
        start = 0
        for k, layer in enumerate(self.layers):
            start = start if self.chained[k] else k
            own = first[layer].calls[0].emptied(self._keys[k])
            like = (
                i
                for i in dict.fromkeys(found[start:])
                if self._keys[i] == self._keys[k]
                and first[self.layers[i]].calls[0].emptied(self._keys[i]).shares(own)
            )
            found.append(next(like, k))
        return found


@dataclass
class _Seen:
    """A module's calls in one run of the model."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None


class _StopError(Exception):
    """Ends a run of the model early."""


def _record(
    model: LiveModel,
    layers: Sequence[Layer],
    fed: Fed,
    stop: Layer | None = None,
    scale: float | None = None,
) -> dict[Layer, _Seen]:
    """Run one batch, and see what layers are called with, in the order of their first calls.

    Args:
        stop: end before this one is run.
        scale: by which every tensor that a layer puts out is multiplied.
    """
    found: dict[Layer, _Seen] = {}

    def before(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.setdefault(layer, _Seen()).calls.append(Call(args, dict(kwargs)))
            if layer is stop:
                raise _StopError

        return hook

    def after(layer: Layer) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            found[layer].output = main_output(output)
            return None if scale is None else scaled(output, scale)

        return hook

    with _hooks(layers, before, after), torch.no_grad(), suppress(_StopError):
        call(model, fed.inputs)
    return found


@contextmanager
def _hooks(
    layers: Sequence[Layer],
    before: Callable[[Layer], Callable[..., None]],
    after: Callable[[Layer], Callable[..., Any]],
) -> Iterator[None]:
    handles = []
    for layer in layers:
        handles.append(layer.module.register_forward_pre_hook(before(layer), with_kwargs=True))
        handles.append(layer.module.register_forward_hook(after(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _candidates(module: nn.Module, sites: Sites, others: bool) -> list[Layer]:
    """Repeated layers by their parameters' names; with `others`, matrices outside of them."""
    groups: dict[str, set[str]] = {}
    for parameter, parts in sites.names.parts.items():
        prefix = layer_prefix(parameter)
        if prefix is not None:
            path = f"{prefix}{layer_index(parameter)}"
            groups.setdefault(path, set()).update(part.tensor for part in parts)
    if others:
        for site in sites:
            if site.matrix and not site.tied and layer_prefix(site.parameter) is None:
                groups.setdefault(site.path, set()).add(site.tensor)
    # a list may hold parameters, too
    modules = dict(module.named_modules())
    return [
        Layer(path, modules[path], frozenset(tensors))
        for path, tensors in groups.items()
        if path in modules
    ]


def _check(model: LiveModel, known: Sequence[Layer], found: dict[Layer, _Seen]) -> None:
    """Leave out what runs before the first repeated layer; see that layers run, and once."""
    repeated = [layer for layer in known if _repeated(layer)]
    for layer in [layer for layer in found if not _repeated(layer)]:
        if len(found[layer].calls) > 1:
            del found[layer]
    for layer in list(found):
        if _repeated(layer):
            break
        del found[layer]
    if not found:
        what = f"none of {len(repeated)} layers ran" if repeated else "it has no repeated layers"
        raise EvidenceError(
            f"{model.name} cannot be walked layer by layer: {what}; expected modules numbered in "
            "a list, such as model.layers.0"
        )
    for layer, seen in found.items():
        if len(seen.calls) > 1:
            raise EvidenceError(
                f"{model.name} runs {layer.path} {len(seen.calls)} times for one batch; a layer "
                "that is used again has no one place in a walk"
            )


def _repeated(layer: Layer) -> bool:
    return layer_prefix(f"{layer.path}.weight") is not None
