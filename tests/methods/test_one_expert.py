"""A single expert, all of it kept, is what every calibrated method returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_evidence import base_evidence_for, evidence_for
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.methods import all_methods, get_method

SHAPES = {"w": (5, 4), "tall": (6, 3), "conv": (4, 3, 2, 2), "b": (5,), "one": (1,)}
CASES = [
    ("fisher", {}),
    ("fisher", {"normalize": False, "floor": 1e-6}),
    ("fisher", {"information": "fisher_nodes"}),
    ("regmean", {}),
    ("regmean", {"off_diagonal": 1.0, "ridge": 0.0, "weight": 0.2}),
    ("mats", {"metric": "identity"}),
    ("mats", {"metric": "diagonal"}),
    ("mats", {"metric": "gram", "weight": 3.0, "tolerance": 1e-9}),
    ("mats", {"metric": "kfac", "tolerance": 1e-9}),
    ("mats", {"metric": "kfac", "tolerance": 1e-9, "init": "mean"}),
    ("gradient_matching", {}),
    ("gradient_matching", {"scale": 40.0, "base_scale": 0.0}),
    ("ota", {}),
    ("ota", {"moment": "fisher", "power": 2.0}),
    ("localize_and_stitch", {"density": 1.0}),
    ("model_tailor", {"density": 1.0, "others": "expert"}),
    ("bcwi", {"alpha": 0.0}),
    ("aim", {"omega": 1.0}),
]


def drawn(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("name", "given"), CASES)
def test_one_expert_is_returned(name: str, given: dict[str, Any]) -> None:
    method, base, expert = get_method(name), drawn(0), drawn(1)
    merged = merge_state_dicts(
        [expert], name, base=base if method.base != "ignored" else None, parameters=given,
        evidence=evidence_for(method, [expert], given),
        base_evidence=base_evidence_for(method, base, given),
    )  # fmt: skip
    torch.testing.assert_close(merged, expert, rtol=1e-4, atol=1e-5)


def test_every_method_that_always_reads_evidence_is_among_them() -> None:
    always = {name for name, method in all_methods().items() if method.needs_at_defaults()}
    assert always <= {name for name, _ in CASES}
