"""How task vectors change the outputs of parts of a model, and weights that follow from that.

For a part g with inputs x: d_i(x) = g(x; base + tau_i) - g(x; base). Where g is nearly linear in
its weights, weights a_i for the task vectors change the outputs by sum_i a_i d_i(x).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.errors import NonFiniteError
from mergewise.evidence._walk import Layer, Walk
from mergewise.evidence.statistics._sites import Sites, Tokens, sites_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence._live import LiveModel
    from mergewise.evidence.statistics._inputs import Fed

Granularity = Literal["layer", "block"]
Tensors = Mapping[str, "Tensor"]
Told = Callable[[int, int], None]
_NOTHING = 1e-10
"""Relative to the largest eigenvalue: directions in which no output changes."""


@dataclass(frozen=True)
class Family:
    """Weights by the checkpoints' names.

    Attributes:
        merged: the names that a merge decides on; of all others the base's are used.
    """

    base: Tensors
    experts: Sequence[Tensors]
    merged: Collection[str]


@dataclass(frozen=True, eq=False)
class Submodule:
    """A part of a layer, or all of it.

    Attributes:
        path: of its module, such as ``model.layers.3.mlp``.
        tensors: of the checkpoint, that are merged and lie in it.
    """

    path: str
    module: nn.Module
    tensors: tuple[str, ...]


def submodules(
    layer: Layer, sites: Sites, granularity: Granularity, merged: Collection[str]
) -> list[Submodule]:
    """The parts of a layer that get weights of their own: its children that hold matrices."""
    found = [(layer.path, layer.module)]
    if granularity == "block":
        holding = {site.path for site in sites if site.matrix and site.tensor in layer.tensors}
        children = [(f"{layer.path}.{name}", c) for name, c in layer.module.named_children()]
        parts = [
            (path, child)
            for path, child in children
            if any(held == path or held.startswith(f"{path}.") for held in holding)
        ]
        found = parts or found
    each = [Submodule(path, module, _within(path, module, sites)) for path, module in found]
    chosen = [
        Submodule(one.path, one.module, tuple(n for n in one.tensors if n in merged))
        for one in each
    ]
    return [one for one in chosen if one.tensors]


def _within(path: str, module: nn.Module, sites: Sites) -> tuple[str, ...]:
    names = (f"{path}.{name}" for name, _ in module.named_parameters())
    return tuple(p.tensor for name in names for p in sites.names.of(name) if _whole(name, sites))


def _whole(parameter: str, sites: Sites) -> bool:
    """Whether the checkpoint's tensors make up all of a parameter."""
    parts = sites.names.of(parameter)
    shape = sites.names.shape(parameter)
    if len(parts) == 1 and parts[0].shape == shape:
        return True
    rows = torch.Size(shape[:-1]).numel()
    return sum(part.stop - part.start for part in parts) == rows


def output_grams(
    model: LiveModel,
    batches: Sequence[Fed],
    family: Family,
    granularity: Granularity,
    told: Told | None = None,
) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Inner products of what the experts change in each submodule's outputs.

    Args:
        model: whose own activations are every submodule's inputs; in memory, and left as it is.
        batches: none may be empty.
        told: called with a layer's number and how many there are.

    Returns:
        By path: its tensors, and float64 [experts, experts], mean over tokens of <d_i, d_j>.

    Raises:
        EvidenceError: if the model cannot be walked layer by layer.
        NonFiniteError: if outputs are NaN or infinite.
    """
    stored = tuple(family.base)
    sites = sites_of(model.module, stored)
    walk = Walk(model, sites, batches)
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    for k in range(len(walk.layers)):
        if told is not None:
            told(k + 1, len(walk.layers))
        layer = walk.enter(k)
        parts = submodules(layer, sites, granularity, family.merged)
        measures = [_Measure(one, sites, family) for one in parts]
        _run(walk, measures)
        found |= {m.part.path: (m.part.tensors, m.mean(model.name)) for m in measures}
    return found


def _run(walk: Walk, measures: Sequence[_Measure]) -> None:
    with ExitStack() as hooks:
        for one in measures:
            handle = one.part.module.register_forward_hook(one.hook, with_kwargs=True)
            hooks.callback(handle.remove)
        for fed, run in walk.calls():
            for one in measures:
                one.tokens = Tokens(fed.mask)
            run()


class _Measure:
    """Runs one submodule with everybody's weights on the inputs that it is given."""

    def __init__(self, part: Submodule, sites: Sites, family: Family) -> None:
        self.part = part
        self.tokens = Tokens()
        count = len(family.experts)
        self._gram = torch.zeros(count, count, dtype=torch.float64)
        self._rows = 0
        self._base = dict(_weights(part, sites, lambda name: family.base[name]))
        self._experts = [
            dict(_weights(part, sites, _chooser(family, expert))) for expert in family.experts
        ]
        self._busy = False

    def hook(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """What the engine of torch calls behind the submodule."""
        if self._busy:  # called by ourselves
            return
        self._busy = True
        try:
            self._add(args, kwargs)
        finally:
            self._busy = False

    def _add(self, args: Any, kwargs: Any) -> None:
        before = self._outputs(self._base, args, kwargs)
        changes = torch.stack(
            [(self._outputs(w, args, kwargs) - before).flatten() for w in self._experts]
        ).double()
        self._gram += (changes @ changes.T).cpu()
        self._rows += len(before)

    def _outputs(self, weights: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """[tokens, channels], without padding."""
        output = torch.func.functional_call(self.part.module, dict(weights), args, kwargs)
        while isinstance(output, tuple | list):
            output = output[0]
        return self.tokens.rows(output.detach()).float()

    def mean(self, model: str) -> Tensor:
        """Per token."""
        if not bool(self._gram.isfinite().all()):
            raise NonFiniteError(
                f"{model}: NaN or infinity in the outputs of {self.part.path}; try --dtype "
                "float32, and `mergewise inspect` to see whether the weights are finite"
            )
        return self._gram / max(1, self._rows)


def _chooser(family: Family, expert: Tensors) -> Callable[[str], Tensor]:
    def choose(name: str) -> Tensor:
        return expert[name] if name in family.merged else family.base[name]

    return choose


def _weights(
    part: Submodule, sites: Sites, source: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """A submodule's parameters by their names in it, from tensors of a checkpoint."""
    for name, parameter in part.module.named_parameters():
        full = f"{part.path}.{name}"
        if not _whole(full, sites):
            continue
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        for one in sites.names.of(full):
            one.of(value).copy_(source(one.tensor))
        yield name, value


def fitted(grams: Sequence[Tensor], ridge: float = 0.0) -> list[float]:
    """Weights that make one submodule change its outputs as each expert does on its own task.

    They minimise sum_t E_t |sum_i a_i d_i - d_t|^2 + r |a|^2; of several solutions it is the
    shortest, so that equal experts share.

    Args:
        grams: for each task t [experts, experts], E_t <d_i, d_j>; task t is expert t's.
        ridge: r, relative to the mean of the diagonal of their sum.
    """
    left = torch.stack(list(grams)).sum(0)
    right = torch.stack([gram[:, t] for t, gram in enumerate(grams)]).sum(0)
    values, vectors = torch.linalg.eigh(
        left + ridge * left.diagonal().mean() * torch.eye(len(left))
    )
    known = values > _NOTHING * values[-1].clamp(min=0)
    inverse = torch.where(known, 1 / torch.where(known, values, 1.0), 0.0)
    found: list[float] = (vectors @ (inverse * (vectors.T @ right))).tolist()
    return found


def left_over(grams: Sequence[Tensor], weights: Sequence[float]) -> tuple[float, float]:
    """sum_t E_t |sum_i a_i d_i - d_t|^2, and the same of the base, whose weights are 0."""
    a = torch.tensor(weights, dtype=torch.float64)
    error = whole = 0.0
    for t, gram in enumerate(grams):
        off = a.clone()
        off[t] -= 1
        error += float(off @ gram @ off)
        whole += float(gram[t, t])
    return max(0.0, error), whole
