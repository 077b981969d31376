"""Spectra by Gram matrices in stages, against LAPACK's."""

from __future__ import annotations

import pytest
import torch

from mergewise.methods._spectrum import (
    NOTHING,
    decorrelated,
    full_svd,
    joint_basis,
    polar,
    svd,
)


def matrix(rows: int, columns: int, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix with given singular values, float64."""
    draw = torch.Generator().manual_seed(seed)
    size = len(values)
    u = torch.linalg.qr(torch.randn(rows, size, generator=draw, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, size, generator=draw, dtype=torch.float64)).Q
    return (u * values.double()) @ v.mT


FALLING = torch.logspace(0, -6, 40, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(40, 90), (90, 40), (40, 40)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_small_singular_values_keep_their_digits(rows: int, columns: int, scale: float) -> None:
    a = matrix(rows, columns, FALLING) * scale
    found = svd(a)
    torch.testing.assert_close(found.s / scale, FALLING, rtol=1e-8, atol=0)
    eye = torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(found.u.mT @ found.u, eye, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.vh @ found.vh.mT, eye, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.whole() / scale, a / scale, rtol=0, atol=1e-9)
    torch.testing.assert_close(polar(a), full_svd(a).u @ full_svd(a).vh, rtol=0, atol=1e-6)


def test_directions_of_rounding_are_left_out() -> None:
    values = torch.tensor([3.0, 1.0, 2e-4, NOTHING, 0.0])
    found = svd(matrix(20, 30, values))
    torch.testing.assert_close(found.s.float(), values[:3])
    assert found.vh.shape == (3, 30)
    assert len(svd(torch.zeros(4, 7)).s) == 0
    assert svd(torch.zeros(7, 4)).whole().shape == (7, 4)


@pytest.mark.parametrize("most", [0, 1, 7, 25, 40, 99])
def test_the_first_are_the_first(most: int) -> None:
    a = matrix(40, 60, FALLING)
    some, every = svd(a, most), svd(a)
    torch.testing.assert_close(some.s, every.s[:most])
    torch.testing.assert_close(some.whole(), every.top(most).whole(), rtol=0, atol=1e-9)


def test_equal_columns_share_a_direction() -> None:
    a = matrix(30, 50, torch.ones(10))
    u = svd(a).u
    nearest = polar(torch.cat([u, u], 1))
    torch.testing.assert_close(nearest, torch.cat([u, u], 1) / 2**0.5, rtol=0, atol=1e-8)
    doubled = decorrelated([svd(a), svd(a)])
    torch.testing.assert_close(doubled, a, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("rows", "columns"), [(50, 20), (20, 50)])
def test_a_joint_basis_holds_all_columns(rows: int, columns: int) -> None:
    parts = [matrix(rows, columns, torch.tensor([3.0, 1e-3]), seed) for seed in range(3)]
    basis = joint_basis(parts, 1e-5)
    assert basis.shape == (rows, 6)
    for part in parts:
        torch.testing.assert_close(basis @ (basis.mT @ part), part, rtol=0, atol=1e-9)
