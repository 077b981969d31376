"""Properties that hold by construction, checked on a run's own experts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lab._contenders import Contender
from benchmarks.lab._family import Models, State
from benchmarks.lab._merge import merge
from mergewise._lazy import torch
from mergewise.errors import MergewiseError
from mergewise.methods import all_methods

SMALL = 1e-4
"""Largest difference, as a share of the largest weight, that counts as rounding."""
ENOUGH = 1_000_000
"""Elements of each model that are looked at; properties of arithmetic need no more."""


@dataclass(frozen=True)
class Exact:
    """What became of a property.

    Attributes:
        error: the largest difference over all weights, over the largest weight; None where it
            cannot be tried.
    """

    text: str
    error: float | None
    missing: str = ""

    def __str__(self) -> str:
        if self.error is None:
            return f"cannot be tried ({self.missing})"
        verdict = "holds" if self.error <= SMALL else "does not hold"
        return f"{verdict}: largest difference {self.error:.1e} of the largest weight"


def checked(models: Models, chosen: Sequence[Contender]) -> list[Exact]:
    """Every property, on the first tensors of one seed's models."""
    models = _part(models)
    experts = list(models.experts.values())
    found = [
        _property("Karcher mean of two models of equal length = SLERP at 1/2",
                  ("karcher", "slerp"), lambda: _karcher(experts[0], experts[1])),
        _property("CART with all ranks = average", ("cart",),
                  lambda: _same(models, ("cart", {"rank": 1.0}), ("linear", {"weight": 1.0}))),
        _property("Core Space with a linear rule = direct merge", ("core_space",),
                  lambda: _same(models, ("core_space", {"rule": "sum", "otherwise": "sum"}),
                                ("task_arithmetic", {"weight": 1.0}))),
        _property("TSV-M of one task = that task", ("tsv_m",), lambda: _alone(models, "tsv_m")),
        _property("Iso-C's task vector has equal singular values", ("iso_c",),
                  lambda: _spectrum(models, "iso_c")),
    ]  # fmt: skip
    return [*found, _orders(models, chosen), _cancelling(models, chosen)]


def _part(models: Models) -> Models:
    names: list[str] = []
    elements = 0
    for name, tensor in models.base.items():
        if not names or elements + tensor.numel() <= ENOUGH:
            names.append(name)
            elements += tensor.numel()

    def some(state: State) -> State:
        return {name: state[name] for name in names}

    return Models(some(models.base), {n: some(s) for n, s in models.experts.items()})


def _orders(models: Models, chosen: Sequence[Contender]) -> Exact:
    """All contenders that claim not to mind the order of the experts; the worst of them counts."""
    errors: dict[str, float] = {}
    for contender in chosen:
        method = all_methods()[contender.method]
        if method.symmetric and not method.random:
            with contextlib.suppress(MergewiseError):
                errors[contender.name] = _turned(models, contender)
    if not errors:
        return Exact("the order of the experts does not matter", None, "no method claims it")
    worst = max(errors, key=lambda name: errors[name])
    text = f"the order of the experts does not matter to {len(errors)} contenders"
    return Exact(f"{text} (most to {worst})", errors[worst])


def _cancelling(models: Models, chosen: Sequence[Contender]) -> Exact:
    """Task vectors that sum to zero: finite weights from all, the base from task arithmetic."""
    broken = []
    for contender in chosen:
        try:
            merged = _opposite(models, contender)
        except MergewiseError:
            continue  # a refusal is an answer
        if not all(bool(torch.isfinite(t).all()) for t in merged.values()):
            broken.append(contender.name)
    if broken:
        text = f"opposite task vectors: not finite with {', '.join(broken)}"
        return Exact(text, float("inf"))
    plain = Contender("", "task_arithmetic", {"weight": 1.0})
    text = f"two opposite task vectors: {len(chosen)} contenders stay finite; TA gives the base"
    return Exact(text, difference(_opposite(models, plain), models.base))


def _property(text: str, methods: Sequence[str], error: Callable[[], float] | None) -> Exact:
    gone = [name for name in methods if name not in all_methods()]
    if gone:
        return Exact(text, None, f"no {', '.join(gone)}")
    if error is None:
        return Exact(text, None, "its check has to be written with the method")
    try:
        return Exact(text, error())
    except MergewiseError as problem:
        return Exact(text, None, str(problem))


def _karcher(one: State, other: State) -> float:
    pair = [_unit(one), _unit(other)]
    mean = merge(pair, "karcher")
    arc = merge(pair[1:], "slerp", base=pair[0], parameters={"t": 0.5})
    return difference(mean, arc)


def _unit(state: State) -> dict[str, Any]:
    return {
        name: tensor / tensor.float().norm().clamp(min=1e-12)
        if tensor.dim() > 1
        else torch.ones_like(tensor)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def _alone(models: Models, method: str) -> float:
    expert = next(iter(models.experts.values()))
    return difference(merge([expert], method, base=models.base), expert)


def _same(models: Models, *pair: tuple[str, Mapping[str, Any]]) -> float:
    """Two methods on all experts; methods that ignore a base are not given it."""
    experts = list(models.experts.values())
    one, other = (
        merge(experts, name, parameters=parameters,
              base=None if all_methods()[name].base == "ignored" else models.base)
        for name, parameters in pair
    )  # fmt: skip
    return difference(one, other)


def _spectrum(models: Models, method: str) -> float:
    """The largest difference between singular values of one matrix, over the largest of it."""
    merged = merge(list(models.experts.values()), method, base=models.base)
    worst = 0.0
    for name, tensor in merged.items():
        delta = tensor.double() - models.base[name].double()
        if delta.dim() == 2 and float(delta.abs().max()) > 0:
            values = torch.linalg.svdvals(delta)
            worst = max(worst, float((values[0] - values[-1]) / values[0]))
    return worst


def _turned(models: Models, contender: Contender) -> float:
    experts = list(models.experts.values())
    how: Mapping[str, Any] = {
        "base": models.base if contender.base else None,
        "parameters": contender.at(contender.default),
    }
    straight = merge(experts, contender.method, **how)
    return difference(straight, merge(experts[::-1], contender.method, **how))


def _opposite(models: Models, contender: Contender) -> State:
    expert, base = next(iter(models.experts.values())), models.base
    away = {
        name: 2 * tensor - expert[name] if tensor.is_floating_point() else tensor
        for name, tensor in base.items()
    }
    return merge(
        [expert, away],
        contender.method,
        base=base if contender.base else None,
        parameters=contender.at(contender.default),
    )


def difference(one: State, other: State) -> float:
    """The largest, over the largest weight of the second."""
    pairs = [(t.float(), other[n].float()) for n, t in one.items() if t.is_floating_point()]
    most = max(float(b.abs().max()) for _, b in pairs if b.numel())
    return max(float((a - b).abs().max()) for a, b in pairs if b.numel()) / max(most, 1e-30)
