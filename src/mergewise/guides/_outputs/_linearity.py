"""How task vectors change the outputs of parts of a model, and weights that follow from that.

For a part g with inputs x: d_i(x) = g(x; base + tau_i) - g(x; base). Where g is nearly linear in
its weights, weights a_i for the task vectors change the outputs by sum_i a_i d_i(x).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from mergewise._lazy import torch
from mergewise.evidence.models import Layer, Sites, Tokens, Walk, sites_of
from mergewise.guides._outputs._head_outputs import HeadMeasure
from mergewise.guides._outputs._heads import attends
from mergewise.guides._outputs._submodule import Family, Measure, Outputs, Submodule, is_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence.models import Fed, LiveModel

Granularity = Literal["layer", "block", "head"]
Told = Callable[[int, int], None]
_NOTHING = 1e-10
"""Relative to the largest eigenvalue: directions in which no output changes."""


def submodules(
    layer: Layer, sites: Sites, granularity: Granularity, merged: Collection[str]
) -> list[Submodule]:
    """The parts of a layer that get weights of their own: its children that hold matrices."""
    found = [(layer.path, layer.module)]
    if granularity != "layer":
        holding = {site.path for site in sites if site.matrix and site.tensor in layer.tensors}
        children = [(f"{layer.path}.{name}", c) for name, c in _children(layer.module)]
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


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that are run: of a list of modules its members, as T5's layers have one."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ModuleList):
            yield from ((f"{name}.{i}", one) for i, one in enumerate(child))
        else:
            yield name, child


def _within(path: str, module: nn.Module, sites: Sites) -> tuple[str, ...]:
    names = (f"{path}.{name}" for name, _ in module.named_parameters())
    return tuple(p.tensor for name in names for p in sites.names.of(name) if is_whole(name, sites))


def output_grams(
    model: LiveModel,
    batches: Sequence[Fed],
    family: Family,
    granularity: Granularity,
    told: Told | None = None,
) -> dict[str, Outputs]:
    """Inner products of what the experts change in each submodule's outputs.

    Args:
        model: whose own activations are every submodule's inputs; in memory, and left as it is.
        batches: none may be empty.
        told: called with a layer's number and how many there are.

    Returns:
        By path. Of heads a group's is ``PATH.headG``, and of what they share ``PATH.rest``.

    Raises:
        EvidenceError: if the model cannot be walked layer by layer.
        NonFiniteError: if outputs are NaN or infinite.
    """
    stored = tuple(family.base)
    sites = sites_of(model.module, stored)
    walk = Walk(model, sites, batches)
    found: dict[str, Outputs] = {}
    for k in range(len(walk.layers)):
        if told is not None:
            told(k + 1, len(walk.layers))
        layer = walk.enter(k)
        parts = submodules(layer, sites, granularity, family.merged)
        by_head = [granularity == "head" and attends(p.path, p.module) for p in parts]
        measures = [
            (HeadMeasure if heads else Measure)(one, sites, family)
            for one, heads in zip(parts, by_head, strict=True)
        ]
        _run(walk, measures)
        for measure in measures:
            found |= measure.outputs(model.name)
    return found


def _run(walk: Walk, measures: Sequence[Measure]) -> None:
    with ExitStack() as hooks:
        for one in measures:
            handle = one.part.module.register_forward_hook(one.hook, with_kwargs=True)
            hooks.callback(handle.remove)
        for fed, run in walk.calls():
            for one in measures:
                one.tokens = Tokens(fed.mask)
            run()


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
