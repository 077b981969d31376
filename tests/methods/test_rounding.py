"""What rounding of the experts' weights does to methods of singular vectors, and what it must not.

The truth is what they give where weights hold twice the digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _driver import merge_tensor

SIZES = (60, 40)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def of_spectrum(values: torch.Tensor, seed: int) -> torch.Tensor:
    """A matrix with these singular values."""
    u = torch.linalg.qr(random(SIZES[0], len(values), seed=seed)).Q
    v = torch.linalg.qr(random(SIZES[1], len(values), seed=seed + 50)).Q
    return (u * values.double()) @ v.mT


def apart(deltas: Sequence[torch.Tensor], method: str, **more: Any) -> float:
    """How far a merge of float32 weights is from the truth, as a share of it."""
    base = random(*SIZES, seed=9)
    base[3] *= 30
    exact = merge_tensor([base + d for d in deltas], method, base, **more) - base
    experts = [(base.float().double() + d).float() for d in deltas]
    merged = merge_tensor(experts, method, base.float(), **more)
    return float((merged - base.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("steepness", [1.0, 2.0, 3.0])
def test_iso_cts_of_steep_spectra_is_not_the_base(steepness: float) -> None:
    # of full rank, as full fine-tuning gives: every direction is there, and raised
    values = torch.arange(1, 41).pow(-steepness)
    deltas = [of_spectrum(values, seed) for seed in range(3)]
    base = random(*SIZES, seed=9) * 0.02
    merged = merge_tensor([(base + d).float() for d in deltas], "iso_cts", base.float())
    found = torch.linalg.svdvals(merged.double() - base.float())
    torch.testing.assert_close(found, found.mean().expand(40), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("method", "weak"),
    [(m, w) for m in ("tsv_m", "iso_cts", "core_space") for w in (1e-2, 1e-3, 5e-4)]
    + [("tsv_m", 3e-5), ("tsv_m", 2.5e-5)],
)
def test_a_weak_direction_does_not_take_others_with_it(method: str, weak: float) -> None:
    values = torch.tensor([1.0, 0.5, 0.3, weak])
    deltas = [of_spectrum(values, seed) for seed in range(3)]
    assert apart(deltas, method) < 0.1


@pytest.mark.parametrize("rule", ["tsv", "iso", "tsv_iso"])
@pytest.mark.parametrize("weight", [0.05, 1.0, 10.0])
def test_core_space_knows_rounding_whatever_the_weights(rule: str, weight: float) -> None:
    # adapters with one frozen A, small beside the weights
    a = random(2, SIZES[1], seed=5)
    deltas = [1e-2 / 60 * random(SIZES[0], 2, seed=seed) @ a for seed in range(3)]
    assert apart(deltas, "core_space", rule=rule, weight=weight) < 0.02


def test_weights_do_not_hide_what_core_space_sees() -> None:
    deltas = [1e-4 / 60 * random(60, 2, seed=i) @ random(2, 40, seed=i + 9) for i in range(3)]
    assert apart(deltas, "core_space", rule="tsv", weight=10.0) < 0.1


def test_iso_cts_fills_what_an_expert_left_alone() -> None:
    base = random(*SIZES).float()
    experts = [base, base + 0.1 * random(*SIZES, seed=1).float()]
    assert merge_tensor(experts, "iso_cts", base, null="fill").isfinite().all()
