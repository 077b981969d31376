"""MaTS, gradient matching and BCWI: hand-computed, and against what they must agree with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.errors import EvidenceError, MergewiseError
from mergewise.methods._quadratic import solve_conjugate

EXACT = {"iterations": 200, "tolerance": 1e-10, "init": "mean"}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spd(seed: int, size: int) -> Tensor:
    rows = draw(seed, 3 * size, size)
    return rows.T @ rows / (3 * size)


def merged(method: str, values: list[Tensor], evidence: Any = None, **options: Any) -> Tensor:
    parameters = {k: v for k, v in options.items() if k not in ("base", "base_fisher")}
    base, its = options.get("base"), options.get("base_fisher")
    return merge_state_dicts(
        [{"w": value} for value in values],
        method,
        base=None if base is None else {"w": base},
        parameters=parameters,
        evidence=evidence and [{k: {"w": v} for k, v in e.items()} for e in evidence],
        base_evidence=None if its is None else {"fisher": {"w": its}},
    )["w"]


def fishers(*information: Tensor) -> list[dict[str, Tensor]]:
    return [{"fisher": f} for f in information]


def kfac(entering: list[Tensor], leaving: list[Tensor]) -> list[dict[str, Tensor]]:
    return [
        {"input_gram": g, "output_gradient_gram": s} for g, s in zip(entering, leaving, strict=True)
    ]


@pytest.mark.parametrize("off_diagonal", [1.0, 0.9, 0.0])
def test_mats_with_gram_matrices_is_regmean(off_diagonal: float) -> None:
    values = [draw(i, 4, 6) for i in range(3)]
    grams = [{"input_gram": spd(10 + i, 6)} for i in range(3)]
    given = {"off_diagonal": off_diagonal, "weight": [1.0, 2.0, 0.5]}
    direct = merged("regmean", values, grams, ridge=0.0, **given)
    got = merged("mats", values, grams, metric="gram", **given, **EXACT)
    torch.testing.assert_close(got, direct, rtol=1e-5, atol=1e-6)


def test_mats_with_the_identity_is_the_weighted_mean() -> None:
    values = [draw(0, 4, 6), draw(1, 4, 6)]
    got = merged("mats", values, metric="identity", weight=[1.0, 3.0])
    torch.testing.assert_close(got, (values[0] + 3 * values[1]) / 4)


def test_mats_with_a_diagonal_is_fisher_merging() -> None:
    values = [draw(0, 4, 6), draw(1, 4, 6)]
    known = fishers(draw(2, 4, 6).square(), draw(3, 4, 6).square())
    direct = merged("fisher", values, known, normalize=False)
    torch.testing.assert_close(merged("mats", values, known, metric="diagonal"), direct)


def test_kronecker_factors_by_hand() -> None:
    # every product of factors is a diagonal: row r, column c counts S_r G_c
    values = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    entering = [torch.diag(torch.tensor(g)) for g in ([1.0, 2.0], [1.0, 1.0])]
    leaving = [torch.diag(torch.tensor(s)) for s in ([1.0, 3.0], [2.0, 1.0])]
    got = merged("mats", values, kfac(entering, leaving), **EXACT)
    # counts [[1, 2], [3, 6]] and [[2, 2], [1, 1]]
    expected = torch.tensor([[11 / 3, 4.0], [4.0, 32 / 7]])
    torch.testing.assert_close(got, expected)


def test_kronecker_factors_solve_the_whole_system() -> None:
    values = [draw(i, 3, 4) for i in range(2)]
    entering, leaving = [spd(4, 4), spd(5, 4)], [spd(6, 3), spd(7, 3)]
    given = {"off_diagonal": 1.0, "weight": [0.5, 3.0]}
    got = merged("mats", values, kfac(entering, leaving), **given, **EXACT)
    pairs = zip(given["weight"], leaving, entering, strict=True)
    metrics = [torch.kron(w * s, g).double() for w, s, g in pairs]
    right = sum(c @ v.double().flatten() for c, v in zip(metrics, values, strict=True))
    direct = torch.linalg.solve(sum(metrics), right).reshape(3, 4)
    torch.testing.assert_close(got.double(), direct, rtol=1e-4, atol=1e-5)


def test_kronecker_factors_of_a_weight_stored_inputs_by_outputs() -> None:
    values = [draw(i, 4, 3) for i in range(2)]
    known = kfac([spd(4, 4), spd(5, 4)], [spd(6, 3), spd(7, 3)])
    straight = merged("mats", [value.T.contiguous() for value in values], known, **EXACT)
    torch.testing.assert_close(merged("mats", values, known, **EXACT), straight.T)


def test_mats_of_one_model_or_equal_metrics() -> None:
    value, other = draw(0, 3, 4), draw(1, 3, 4)
    one = kfac([spd(4, 4)], [spd(6, 3)])
    torch.testing.assert_close(merged("mats", [value], one, **EXACT), value)
    both = merged("mats", [value, other], one * 2, **EXACT)
    torch.testing.assert_close(both, (value + other) / 2, rtol=1e-5, atol=1e-6)


def test_mats_stays_where_it_began_where_the_metrics_say_nothing() -> None:
    values, base = [torch.ones(2, 2) * 2, torch.ones(2, 2) * 4], torch.ones(2, 2)
    known = [{"input_gram": torch.diag(torch.tensor([1.0, 0.0]))}] * 2
    got = merged("mats", values, known, metric="gram", base=base, init_scale=0.5)
    # half of the task vectors 1 and 3 on top of the base; the first input's column is the mean
    torch.testing.assert_close(got, torch.tensor([[3.0, 3.0], [3.0, 3.0]]))
    got = merged("mats", values, known, metric="gram", base=base, init_scale=1.0)
    torch.testing.assert_close(got, torch.tensor([[3.0, 5.0], [3.0, 5.0]]))
    got = merged("mats", values, known, metric="gram", base=base, init="mean")
    torch.testing.assert_close(got, torch.full((2, 2), 3.0))


def test_mats_begins_at_the_base_only_if_there_is_one() -> None:
    values, known = [torch.ones(2, 2), torch.ones(2, 2) * 3], [{"input_gram": torch.eye(2)}] * 2
    cut = {"metric": "gram", "iterations": 1, "tolerance": 2.0}  # stays where it begins
    assert torch.equal(merged("mats", values, known, **cut), torch.full((2, 2), 2.0))
    got = merged("mats", values, known, base=torch.zeros(2, 2), **cut)
    torch.testing.assert_close(got, torch.full((2, 2), 0.3 * 4))
    with pytest.raises(MergewiseError, match=r"init: task_arithmetic begins at the base, and"):
        merged("mats", values, known, init="task_arithmetic", **cut)


def test_the_error_of_conjugate_gradients_decreases_to_nothing() -> None:
    metric, pull = spd(0, 12).double(), draw(1, 5, 12).double()
    exact = torch.linalg.solve(metric, pull.T).T
    errors = []
    for steps in range(13):
        apart = solve_conjugate(lambda v: v @ metric, pull, steps, 0.0) - exact
        errors.append(((apart @ metric) * apart).sum(1))
    assert all((b < a).all() for a, b in pairwise(errors))
    assert (errors[-1] < 1e-20 * errors[0]).all()


def test_conjugate_gradients_stop_at_the_tolerance() -> None:
    metric, pull = spd(0, 30).double(), draw(1, 2, 30).double()
    calls = []

    def operator(v: Tensor) -> Tensor:
        calls.append(1)
        return v @ metric

    found = solve_conjugate(operator, pull, 1000, 1e-3)
    left = (pull - found @ metric).norm(dim=1)
    assert (left <= 1e-3 * pull.norm(dim=1)).all()
    assert len(calls) < 30


def test_rows_are_solved_alike_whatever_stands_beside_them() -> None:
    metric, pull = spd(0, 8).double(), draw(1, 6, 8).double()
    pull[3] *= 1e6
    whole = solve_conjugate(lambda v: v @ metric, pull, 4, 1e-2)
    alone = solve_conjugate(lambda v: v @ metric, pull[:2], 4, 1e-2)
    torch.testing.assert_close(whole[:2], alone)


def test_factors_that_do_not_fit_are_refused() -> None:
    values = [draw(0, 3, 4)]
    with pytest.raises(EvidenceError, match=r"output_gradient_gram of w has shape \[4, 4\]"):
        merged("mats", values, kfac([spd(0, 4)], [spd(1, 4)]))


def matching(values: list[float], information: list[float], prior: float, **more: Any) -> float:
    return merged(
        "gradient_matching",
        [torch.tensor([v]) for v in values],
        fishers(*(torch.tensor([f]) for f in information)),
        base=torch.zeros(1),
        base_fisher=torch.tensor([prior]),
        **more,
    ).item()


def test_gradient_matching_by_hand() -> None:
    assert matching([2.0, 4.0], [3.0, 1.0], 1.0, weight=0.5) == pytest.approx(8 / 3)


def test_gradient_matching_counts_examples() -> None:
    assert matching(
        [2.0, 4.0], [1.0, 1.0], 0.25, weight=0.5, scale=[3.0, 1.0], base_scale=4.0
    ) == pytest.approx(8 / 3)


def test_gradient_matching_of_one_expert_is_the_expert() -> None:
    value, known = draw(0, 4, 5), draw(1, 4, 5).square()
    got = merged(
        "gradient_matching", [value], fishers(known), base=draw(2, 4, 5),
        base_fisher=draw(3, 4, 5).square(),
    )  # fmt: skip
    torch.testing.assert_close(got, value)


def test_a_prior_that_is_sure_makes_it_task_arithmetic() -> None:
    assert matching([2.0, 4.0], [3.0, 1.0], 1e8, weight=0.5) == pytest.approx(3.0)
    assert matching([2.0, 4.0], [3.0, 1.0], 0.0, delta=1e8, weight=0.5) == pytest.approx(3.0)
    assert matching([2.0, 4.0], [0.0, 0.0], 0.0, delta=0.0, weight=0.5) == pytest.approx(3.0)


def test_without_a_prior_it_is_fisher_merging() -> None:
    values = [draw(0, 4, 5), draw(1, 4, 5)]
    known = fishers(draw(2, 4, 5).square(), draw(3, 4, 5).square())
    got = merged(
        "gradient_matching", values, known, base=draw(4, 4, 5), base_scale=0.0, delta=0.0,
        weight=0.5,
    )  # fmt: skip
    direct = merged("fisher", values, known, normalize=False)
    torch.testing.assert_close(got, direct, rtol=1e-4, atol=1e-5)


def test_the_bases_information_is_asked_for() -> None:
    with pytest.raises(MergewiseError, match=r"needs fisher of the base model: pass base_evidence"):
        merged("gradient_matching", [torch.ones(1)], fishers(torch.ones(1)), base=torch.zeros(1))


def drawn_back(old: list[float], new: list[float], known: Any, **parameters: Any) -> list[float]:
    return merged(
        "bcwi", [torch.tensor(new)], base=torch.tensor(old),
        base_fisher=None if known is None else torch.tensor(known), **parameters,
    ).tolist()  # fmt: skip


def test_bcwi_by_hand() -> None:
    # hold .25 * F against .75: (0.75 * 1 + 0.75 * 5) / 1.5 and (0 + 0.75 * 5) / 0.75
    got = drawn_back([1.0, 1.0], [5.0, 5.0], [3.0, 0.0], alpha=0.25, normalize=False)
    assert got == pytest.approx([3.0, 5.0])


def test_bcwi_with_equal_information_is_interpolation() -> None:
    plain = drawn_back([1.0, 2.0], [5.0, 4.0], None, alpha=0.25, importance="none")
    assert plain == pytest.approx([4.0, 3.5])
    got = drawn_back([1.0, 2.0], [5.0, 4.0], [7e-9, 7e-9], alpha=0.25)
    assert got == pytest.approx(plain)


def test_bcwi_at_the_end_of_what_floats_hold() -> None:
    assert drawn_back([0.01], [5.0], [1e-44], alpha=1.0, normalize=False) == pytest.approx([0.01])


def test_bcwi_at_its_ends() -> None:
    ends = {alpha: drawn_back([1.0, 2.0], [5.0, 4.0], [1.0, 0.0], alpha=alpha) for alpha in (0, 1)}
    assert ends == {0: [5.0, 4.0], 1: [1.0, 2.0]}
