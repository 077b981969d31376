"""A naive evaluation of a method: whole tensors, plain torch, thresholds by a full sort.

It shares nothing with the engine, so that the two can be held against each other. Equal scores
are kept in order of position, where the engine takes a hash: results agree unless scores tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergewise.methods import Access, Inputs, Method, Need, Settings, get_method, placed


@dataclass(frozen=True)
class Threshold:
    value: float
    count: int


class WholeTensor(Inputs):
    def __init__(self, base: Tensor | None, experts: Sequence[Tensor], columns: int, seed: int):
        self.base, self.experts = base, experts
        self.columns = columns
        self.ranks: list[Tensor] = []
        self.masks: list[Tensor] = []
        self._seed = seed

    def noise(self, expert: int) -> Tensor:
        draw = torch.Generator().manual_seed(1000 * self._seed + expert)
        return torch.rand(self.experts[0].shape, generator=draw)

    def at_least(self, score: Tensor, threshold: Threshold, expert: int) -> Tensor:
        order = score.flatten().argsort(descending=True, stable=True)[: threshold.count]
        mask = torch.zeros(score.numel(), dtype=torch.bool)
        mask[order] = True
        return mask.reshape(score.shape)


def complete(method: Method, experts: int, given: Mapping[str, Any]) -> Settings:
    """All of a method's parameters, one for each expert where they are theirs."""
    values: dict[str, Any] = {}
    known = {("lambda" if name == "lambda_" else name): value for name, value in given.items()}
    for name, param in method.params.items():
        value = known.pop(name, param.default)
        if param.per_model and not isinstance(value, list):
            value = [value] * experts
        values[name] = value
    assert not known, f"{method.name} has no parameters {sorted(known)}"
    return Settings(values)


def _rows(shape: torch.Size) -> tuple[int, int]:
    columns = 1
    for size in shape[-1:] if len(shape) < 3 else shape[1:]:
        columns *= size
    return -1, columns


def _threshold(score: Tensor, count: int) -> Threshold:
    if count < 0:
        count += 1 + score.numel()
    ordered = score.flatten().sort(descending=True).values.double()
    value = float(ordered[count - 1]) if count else float("inf")
    return Threshold(value, count)


def _row_ranks(score: Tensor, columns: int) -> Tensor:
    rows = score.reshape(-1, columns)
    return rows.argsort(dim=1, stable=True).argsort(dim=1).float().reshape(score.shape)


def merge_tensor(
    experts: Sequence[Tensor],
    method: str,
    base: Tensor | None = None,
    seed: int = 0,
    evidence: Sequence[Mapping[str, Tensor | None]] | None = None,
    base_evidence: Mapping[str, Tensor | None] | None = None,
    kind: str | None = None,
    turned: bool = False,
    **parameters: Any,
) -> Tensor:
    """Merge one tensor; a per-model parameter is a scalar or a list with one value each.

    `evidence` gives each model's means for this tensor, by statistic, `base_evidence` the base's;
    `kind` and `turned` are what methods of matrices are told of it.
    """
    chosen = get_method(method)
    settings = complete(chosen, len(experts), parameters)
    shape = experts[0].shape
    kind = kind or {0: "vector", 1: "vector", 2: "matrix"}.get(len(shape), "convolution")
    settings = Settings(placed(chosen, vars(settings), kind, turned))
    values = dict(vars(settings))
    problem = chosen.problem(settings, len(experts))
    assert problem is None, problem
    columns = _rows(shape)[1]
    needs = chosen.needs(settings)
    theirs = {"experts": evidence or (), "base": (base_evidence or {},)}
    found = [[model.get(need.statistic) for model in theirs[need.of]] for need in needs]
    described = bool(found) and all(mean is not None for each in found for mean in each)
    view = {
        Access.FLAT: (-1,),
        Access.ROWS: (-1, columns),
        Access.WHOLE: shape,
    }[chosen.access(settings)]
    if described and any("matrix" in need.per for need in needs):
        view = (shape[0], -1)
    x = WholeTensor(
        None if base is None else base.float().reshape(view),
        [e.float().reshape(view) for e in experts],
        columns,
        seed,
    )
    if described:
        x.evidence = [
            [_given(need, mean, shape, view) for mean in each if mean is not None]
            for need, each in zip(needs, found, strict=True)
        ]
    return _evaluate(chosen, x, values).reshape(shape)


def _given(need: Need, mean: Tensor, shape: torch.Size, view: Sequence[int]) -> Tensor:
    if need.per == "column" and len(shape) > 1:
        mean = mean.expand(shape[0], -1)
    if need.per == "spread":
        mean = mean.expand(shape)
    return mean if "matrix" in need.per else mean.reshape(tuple(view))


def _evaluate(method: Any, x: WholeTensor, values: Mapping[str, Any]) -> Tensor:
    def settings() -> Settings:
        return Settings(values)

    n = x.experts[0].numel()
    scores = method.scores(x, settings())
    if method.ranked(settings()):
        x.ranks = [_row_ranks(score, x.columns) for score in scores]
    found: list[list[Threshold]] = []
    for turn in range(0 if x.ranks else method.rounds):
        if turn:
            values = {**values, "round": turn, "thresholds": list(found)}
            scores = method.scores(x, settings())
        nonzero = [int((score != 0).sum()) for score in scores]
        wanted = method.ranks(settings(), n, nonzero) if scores else []
        found += [
            [_threshold(score, r) for r in row] for score, row in zip(scores, wanted, strict=True)
        ]
    if not x.ranks:
        values = {**values, "thresholds": found}
    terms = method.terms(x, settings())
    totals = {name: float(term.double().sum()) for name, term in terms.items()}
    values = {**values, **method.coefficients(totals, settings(), n)}
    return method.combine(x, settings())
