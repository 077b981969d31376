"""The arithmetic of new rows, against slow and plain versions of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergewise.transforms._transplant import _combine, _pursuit
from mergewise.transforms._transplant._combine import Atoms, Combination
from mergewise.transforms._transplant._neighbours import interpolate
from mergewise.transforms._transplant._pieces import from_pieces
from mergewise.transforms._transplant._pursuit import pursue


def quiet(done: int, total: int) -> None:
    pass


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(target: np.ndarray, atoms: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    chosen, residual, weights = [], target.copy(), np.zeros(0)
    for _ in range(k):
        score = np.abs(atoms @ residual) / np.linalg.norm(atoms, axis=1)
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        residual = target - atoms[chosen].T @ weights
    return chosen, weights


@pytest.mark.parametrize("k", [1, 3, 8])
def test_against_a_naive_pursuit(k, monkeypatch):
    monkeypatch.setattr(_combine, "BATCH_BYTES", 4_000)  # several batches
    atoms, targets = numbers(40, 12) * torch.rand(40, 1).mul(3).add(0.1), numbers(23, 12, seed=1)
    own = torch.randperm(40)
    seen = []
    found, left = pursue(targets, Atoms(atoms, own), k, lambda d, t: seen.append((d, t)))
    assert seen[-1] == (23, 23) and len(seen) > 1
    lengths = []
    for row, target in enumerate(targets.double().numpy()):
        chosen, weights = naive(target, atoms.double().numpy(), k)
        assert found.rows[row].tolist() == own[chosen].tolist()
        np.testing.assert_allclose(found.weights[row].numpy(), weights, rtol=2e-3, atol=2e-4)
        residual = target - atoms[chosen].double().numpy().T @ weights
        lengths.append(np.linalg.norm(residual) / np.linalg.norm(target))
    assert left == pytest.approx(np.mean(lengths), abs=1e-4)


def test_a_sparse_combination_is_found_and_reused_in_the_other_space():
    atoms, theirs = numbers(50, 64), numbers(50, 16, seed=1)
    picks = torch.tensor([[3, 7, 20], [11, 0, 49]])
    factors = torch.tensor([[1.5, -2.0, 0.7], [0.3, 1.0, -1.0]])
    targets = torch.einsum("tk,tkd->td", factors, atoms[picks])
    found, left = pursue(targets, Atoms(atoms, torch.arange(50)), 10, quiet)
    expected = torch.einsum("tk,tkd->td", factors, theirs[picks])
    made = torch.cat([rows for _, rows in found.apply(theirs)])
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
    assert left < 1e-5


def test_what_is_met_needs_no_more_atoms_and_equal_atoms_do_no_harm():
    atoms = torch.cat([numbers(5, 8), numbers(5, 8)])  # each twice
    target = atoms[:1] * 3
    found, left = pursue(target, Atoms(atoms, torch.arange(10)), 8, quiet)
    assert left < 1e-6 and found.weights.isfinite().all()
    assert found.weights[0].abs().gt(0).sum() == 1
    assert float(found.weights[0].max()) == pytest.approx(3, rel=1e-5)


def test_targets_and_atoms_of_zeros():
    atoms = numbers(6, 8)
    atoms[2] = 0
    found, _ = pursue(torch.zeros(1, 8), Atoms(atoms, torch.arange(6)), 8, quiet)
    assert not found.weights.any() and found.rows.shape == (1, 5)
    used, _ = pursue(numbers(4, 8, seed=2), Atoms(atoms, torch.arange(6)), 5, quiet)
    assert 2 not in used.rows


def test_rounding_stays_small_with_many_atoms():
    atoms, targets = numbers(300, 96) + 3, numbers(5, 96, seed=1) + 3  # far from orthogonal
    found, left = pursue(targets, Atoms(atoms, torch.arange(300)), 64, quiet)
    made = torch.cat([rows for _, rows in found.apply(atoms)])
    met = (targets - made).norm(dim=1) / targets.norm(dim=1)
    assert float(met.mean()) == pytest.approx(left, abs=1e-4) and left < 0.05
    assert _pursuit._ZERO == 1e-6


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_nearest_and_their_weights(metric):
    atoms, targets = numbers(30, 6) * torch.rand(30, 1).mul(2).add(0.5), numbers(4, 6, seed=1)
    found, _ = interpolate(
        targets, Atoms(atoms, torch.arange(30)), 5, metric, "distance_proportional", quiet
    )
    if metric == "euclidean":
        distance = torch.cdist(targets, atoms)
    else:
        distance = 1 - torch.cosine_similarity(targets[:, None], atoms[None], dim=-1)
    near = distance.topk(5, largest=False)
    assert found.rows.tolist() == near.indices.tolist()
    weights = 1 / near.values
    torch.testing.assert_close(found.weights, weights / weights.sum(1, keepdim=True))


def test_barycentric_weights_minimise_under_their_condition():
    atoms, targets = numbers(30, 12), numbers(3, 12, seed=1)
    found, left = interpolate(
        targets, Atoms(atoms, torch.arange(30)), 4, "euclidean", "barycentric", quiet
    )
    assert left < 1
    for weights, rows, target in zip(found.weights, found.rows, targets, strict=True):
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        best = (weights @ atoms[rows] - target).norm()
        for step in numbers(20, 4, seed=3) * 0.05:
            other = weights + step - step.mean()
            assert (other @ atoms[rows] - target).norm() >= best - 1e-4


def test_least_squares_of_more_neighbours_than_dimensions_is_exact():
    atoms, targets = numbers(30, 6), numbers(4, 6, seed=1)
    found, left = interpolate(
        targets, Atoms(atoms, torch.arange(30)), 12, "cosine", "least_squares", quiet
    )
    assert left < 1e-6 and found.rows.shape == (4, 12)
    made = torch.cat([rows for _, rows in found.apply(atoms)])
    torch.testing.assert_close(made, targets, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "output", "expected"),
    [
        ("mean", False, [1 / 3] * 3),
        ("sum", False, [1, 1, 1]),
        ("weighted_mean", False, [1 / 6, 2 / 6, 3 / 6]),
        ("weighted_mean", True, [3 / 6, 2 / 6, 1 / 6]),
        ("first_last", False, [0, 0, 1]),
        ("first_last", True, [1, 0, 0]),
    ],
)
def test_weights_of_pieces(how, output, expected):
    found = from_pieces([[4, 5, 6], [7]], how, output)
    assert found.rows[0].tolist() == [4, 5, 6] and found.rows[1, 0] == 7
    torch.testing.assert_close(found.weights, torch.tensor([expected, [1.0, 0.0, 0.0]]))


def test_combinations_come_in_batches(monkeypatch):
    monkeypatch.setattr(_combine, "BATCH_BYTES", 100)
    own = numbers(9, 5)
    one = Combination(torch.tensor([[1, 2], [3, 3], [0, 8]]), numbers(3, 2, seed=1))
    parts = list(one.apply(own))
    assert [start for start, _ in parts] == [0, 1, 2] or len(parts) > 1
    made = torch.cat([rows for _, rows in parts])
    torch.testing.assert_close(made, torch.einsum("bk,bkd->bd", one.weights, own[one.rows]))
