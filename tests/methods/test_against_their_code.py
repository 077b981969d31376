"""The same results as the authors' code; benchmarks/arithmetic_reference made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise.methods import get_method

GOLDEN = Path(__file__).resolve().parents[1] / "golden/arithmetic.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def inputs(case: dict[str, Any]) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    if case["method"] == "ext_sub":  # changes made by two adapters of rank 3
        pairs = [(draw(10 + seed, 8, 3), draw(seed, 3, 8)) for seed in case["seeds"]]
        return torch.zeros(8, 8), [(b.float() @ a.float()) for b, a in pairs]
    drawn = [draw(seed, *case["shape"]).float() for seed in case["seeds"]]
    if get_method(case["method"]).base == "required":
        return drawn[0], drawn[1:]
    return None, drawn


@pytest.mark.parametrize("i", range(len(CASES)))
def test_agrees_to_five_digits(i: int) -> None:
    case = CASES[i]
    base, experts = inputs(case)
    expected = torch.tensor(case["out"]).reshape(case["shape"])
    naive = merge_tensor(experts, case["method"], base, **case["parameters"])
    torch.testing.assert_close(naive, expected, rtol=1e-5, atol=1e-5)
    merged = merge_state_dicts(
        [{"layer.weight": e} for e in experts],
        case["method"],
        base=None if base is None else {"layer.weight": base},
        parameters=case["parameters"],
    )
    torch.testing.assert_close(merged["layer.weight"], expected, rtol=1e-5, atol=1e-5)


def test_the_file_covers_what_the_docs_say() -> None:
    methods = {case["method"] for case in CASES}
    assert {"geometric_median", "add_perpendicular", "rotate", "crossover"} <= methods
    assert {"copy_region", "ext_sub"} <= methods
