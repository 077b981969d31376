"""A method says where its weights count only against each other, and it is so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from _driver import complete, merge_tensor

from mergewise.methods import Method, Need, Settings, all_methods, placed

SHAPE = (6, 8)


def settings(method: Method) -> list[dict[str, Any]]:
    """The defaults, and every other choice of every switch."""
    found: list[dict[str, Any]] = [{}]
    for name, param in method.params.items():
        choices = (True, False) if param.kind is bool else param.choices
        found += [{name: choice} for choice in choices if choice != param.default]
    return found


WEIGHED = {n: m for n, m in all_methods().items() if (w := m.params.get("weight")) and w.per_model}
CASES = [(name, given) for name, method in WEIGHED.items() for given in settings(method)]


def statistic(need: Need, draw: torch.Generator) -> torch.Tensor:
    if not need.per.endswith("matrix"):
        shape = {"column": SHAPE[1:], "spread": (SHAPE[0], 1)}.get(need.per, SHAPE)
        return torch.rand(shape, generator=draw) + 0.1
    side = SHAPE[1] if need.per == "matrix" else SHAPE[0]
    root = torch.randn(side, side, generator=draw)
    return root @ root.T + torch.eye(side)


def merged(method: Method, weights: list[float], given: Mapping[str, Any]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(SHAPE, generator=draw)
    experts = [base + 0.1 * torch.randn(SHAPE, generator=draw) for _ in weights]
    p = complete(method, len(weights), {**given, "weight": weights})
    needs = method.needs(p)
    theirs = [
        {n.statistic: statistic(n, draw) for n in needs if n.of == "experts"} for _ in experts
    ]
    own = {n.statistic: statistic(n, draw) for n in needs if n.of == "base"}
    return merge_tensor(
        experts,
        method.name,
        None if method.base == "ignored" else base,
        evidence=theirs,
        base_evidence=own,
        **{**given, "weight": weights},
    )


@pytest.mark.parametrize(("name", "given"), CASES)
def test_a_factor_on_all_weights_has_no_effect_where_it_says_so(
    name: str, given: dict[str, Any]
) -> None:
    method = WEIGHED[name]
    needed = {k for k, param in method.params.items() if param.required} - {"weight"}
    given = {**given, **{name: [2.0, 5.0] for name in needed}}
    plain = merged(method, [0.2, 0.5], given)
    if torch.equal(plain, merged(method, [0.4, 0.3], given)):
        return  # weights do not count at all
    p = Settings(placed(method, vars(complete(method, 2, {**given, "weight": 1.0})), "matrix"))
    same = torch.allclose(plain, merged(method, [0.3, 0.75], given), atol=1e-5)
    assert same == bool(method.normalized(p))
    assert method.normalized(p) in ("", name, *method.params)
