"""exp and tanh: how near they are to the true ones, and that they can be compiled."""

from __future__ import annotations

import pytest
import torch

from mergewise.engine._trace import Expr
from mergewise.methods._smooth import falling_exp, tanh


def furthest(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(((found.double() - true) / true).abs().max())


def test_exp_of_numbers_up_to_zero() -> None:
    x = -torch.linspace(0, 87, 100_001)
    assert furthest(falling_exp(x), x.double().exp()) < 1e-6
    assert falling_exp(torch.zeros(1)) == 1
    assert torch.isfinite(falling_exp(torch.tensor([-1e30]))).all()


@pytest.mark.parametrize("size", [1e-20, 1e-3, 0.6, 5.0, 100.0])
def test_tanh_of_small_and_large_numbers(size: float) -> None:
    x = torch.linspace(-size, size, 100_000)
    assert furthest(tanh(x), x.double().tanh()) < 1e-6
    assert tanh(torch.zeros(1)) == 0


@pytest.mark.parametrize("size", [0.1, 0.5, 3.0, 60.0])
def test_steps_that_no_neighbour_needs_change_nothing(size: float) -> None:
    # what is left out where all numbers are small would have given the same bytes
    x = -size * torch.rand(1000)
    beside = torch.cat([x, torch.tensor([-100.0, float("nan")])])
    assert torch.equal(falling_exp(x), falling_exp(beside)[:1000])
    assert torch.equal(tanh(x), tanh(beside)[:1000])


def test_they_are_torch_s_where_digits_or_devices_differ() -> None:
    x = -torch.rand(100, dtype=torch.float64)
    assert torch.equal(falling_exp(x), x.exp()) and torch.equal(tanh(x), x.tanh())


def test_they_are_recorded() -> None:
    for function in (falling_exp, tanh):
        found: object = function(Expr("input", (0,), "f"))  # type: ignore[arg-type]
        assert isinstance(found, Expr)
