"""WUDI, SWUDI, ASWUDI, OptMerge and DOGE: worked examples and properties of their papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise._stopping import stopped_by
from mergewise.errors import InterruptedMergeError
from mergewise.methods import get_method
from mergewise.methods._descent import adam, sgd
from mergewise.methods._interference import Interference, counted, started

FAMILY = ("wudi", "swudi", "aswudi", "optmerge")


def delta(method: str, *deltas: Any, **more: Any) -> torch.Tensor:
    given = [torch.as_tensor(d, dtype=torch.float32) for d in deltas]
    return merge_tensor(given, method, torch.zeros_like(given[0]), **more)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss(m: torch.Tensor, deltas: list[torch.Tensor]) -> torch.Tensor:
    each = [((m - d) @ d.T).square().sum() / d.square().sum() for d in deltas]
    return torch.stack(each).sum()


@pytest.mark.parametrize("method", FAMILY)
def test_one_expert_is_that_expert(method: str) -> None:
    a = 0.01 * random(6, 9)
    torch.testing.assert_close(delta(method, a), a, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["swudi", "aswudi", "optmerge"])
def test_experts_of_disjoint_inputs_are_both_kept(method: str) -> None:
    # tau_1 = e11 and tau_2 = 2 e22 give diag(1, 2)
    more = {"rank_ratio": 1.0} if method == "swudi" else {}
    merged = delta(method, [[1.0, 0], [0, 0]], [[0.0, 0], [0, 2]], **more)
    torch.testing.assert_close(merged, torch.diag(torch.tensor([1.0, 2.0])))


@pytest.mark.parametrize("method", ["swudi", "aswudi", "optmerge"])
def test_experts_of_one_input_are_averaged_whatever_their_size(method: str) -> None:
    # [1, 0] and [3, 0] give [2, 0]
    torch.testing.assert_close(
        delta(method, [[1.0, 0]], [[3.0, 0]]), torch.tensor([[2.0, 0]]), rtol=1e-5, atol=1e-6
    )


def test_full_rank_and_long_time_is_the_minimum() -> None:
    a, b = random(12, 5), random(12, 5, seed=1)
    merged = delta("swudi", a, b, rank_ratio=1.0, time=1e9)
    torch.testing.assert_close(merged, delta("aswudi", a, b, rank_rule="all"))
    m = merged.double().requires_grad_()
    loss(m, [a.double(), b.double()]).backward()
    assert m.grad is not None
    assert float(m.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (3, 40)])
def test_the_slope_is_the_loss_s(shape: tuple[int, int]) -> None:
    deltas = [random(*shape).double(), random(*shape, seed=1).double()]
    start = started(deltas, "sum")
    moved = 0.1 * random(*shape, seed=2).double()
    m = (start + moved).requires_grad_()
    loss(m, deltas).backward()
    torch.testing.assert_close(Interference.of(deltas, "sum")._slope()(moved), m.grad)


def test_wide_layers_take_the_smaller_gram_matrix_to_the_same_result() -> None:
    deltas = [random(3, 40).double(), random(3, 40, seed=1).double()]
    problem = Interference.of(deltas, "sum")
    values, vectors = problem.spectrum()
    assert vectors.shape == (40, 6)
    stack = torch.cat([d / d.norm() for d in deltas])
    whole, every = torch.linalg.eigh(stack.mT @ stack)
    torch.testing.assert_close(values, whole.flip(0)[:6])
    expected = problem.minimised(whole.flip(0), every.flip(1), torch.ones(40))
    ours = problem.minimised(values, vectors, torch.ones(6))
    torch.testing.assert_close(ours, expected)


def test_directions_are_counted_as_the_papers_say() -> None:
    values = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    assert counted(values, 3, "participation_sqrt") == 2  # 9 / 5
    assert counted(values, 3, "participation") == 2  # 25 / 17
    assert counted(values, 3, "stable_rank") == 2  # 17 / 16
    assert counted(values, 3, "entropy") == 2  # exp(0.5)
    assert counted(values, 7, "all") == 7


def test_wudi_moves_no_further_than_its_steps() -> None:
    a, b = random(6, 9), random(6, 9, seed=1)
    moved = delta("wudi", a, b, iterations=50, learning_rate=1e-3) - (a + b)
    assert 0 < float(moved.abs().max()) <= 0.051
    before, after = loss(a + b, [a, b]), loss(a + b + moved, [a, b])
    assert after < before


def test_optmerge_drops_what_lies_beyond_each_expert_s_share() -> None:
    a = torch.diag(torch.tensor([3.0, 2.0, 0.1, 0]))
    b = torch.diag(torch.tensor([0, 0, 5.0, 1.0]))
    merged = delta("optmerge", a, b, rank_rule="all", start="zero")
    torch.testing.assert_close(
        merged, torch.diag(torch.tensor([3.0, 2.0, 5.0, 1.0])), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_optimisers_are_torch_s(kind: str) -> None:
    target = random(4, 5).double()
    x = torch.zeros_like(target).requires_grad_()
    made: Any = (
        torch.optim.Adam([x], lr=0.01)
        if kind == "adam"
        else torch.optim.SGD([x], lr=0.01, momentum=0.9)
    )
    for _ in range(40):
        made.zero_grad()
        (x - target).pow(4).sum().backward()
        made.step()

    def slope(at: torch.Tensor) -> torch.Tensor:
        return 4 * (at - target).pow(3)

    start = torch.zeros_like(target)
    ours = adam(slope, start, 40, 0.01) if kind == "adam" else sgd(slope, start, 40, 0.01, 0.9)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-12, atol=1e-12)
    assert not start.any()


def test_iterations_end_when_the_run_is_stopped() -> None:
    calls = []

    def slope(at: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return at

    with stopped_by(lambda: len(calls) > 2), pytest.raises(InterruptedMergeError):
        adam(slope, torch.zeros(2, 2), 1000, 0.1)
    assert len(calls) == 3


def test_doge_gives_every_task_the_same_length() -> None:
    a, b = random(6, 9), 100 * random(6, 9, seed=1)
    one = delta("doge", a, density=1.0, iterations=0)
    torch.testing.assert_close(one.norm(), torch.tensor(0.07))
    both = delta("doge", a, b, density=1.0, iterations=0)
    torch.testing.assert_close(both, 0.07 * (a / a.norm() + b / b.norm()))


def test_doge_keeps_the_largest_of_the_whole_model() -> None:
    base = {"h.0.a.weight": torch.zeros(2, 5), "h.0.b.weight": torch.zeros(5, 2)}
    expert = {
        "h.0.a.weight": torch.arange(1.0, 11.0).reshape(2, 5),
        "h.0.b.weight": torch.arange(11.0, 21.0).reshape(5, 2),
    }
    given = {"iterations": 0, "density": 0.5}
    merged = merge_state_dicts([expert], "doge", base=base, parameters=given)
    assert [int((t != 0).sum()) for t in merged.values()] == [0, 10]
    own = merge_state_dicts(
        [expert], "doge", base=base, parameters=given | {"granularity": "tensor"}
    )
    assert [int((t != 0).sum()) for t in own.values()] == [5, 5]


def test_doge_s_correction_stays_off_the_shared_subspace() -> None:
    a, b = random(12, 9).double(), random(12, 9, seed=1).double()
    slope_of = get_method("doge")
    from mergewise.methods.doge import _shared, _Slope

    shared = _shared([a, b], 3)
    assert shared.shape == (12, 3)
    torch.testing.assert_close(shared.mT @ shared, torch.eye(3, dtype=torch.float64))
    lengths = [0.07 / float(a.norm()), 0.07 / float(b.norm())]
    made = sgd(_Slope([a, b], lengths, shared), torch.zeros_like(a), 20, 1e-3)
    assert float(made.abs().max()) > 0
    assert float((shared.mT @ made).abs().max()) < 1e-12
    assert slope_of.params["subspace"].default == 6


def test_doge_s_slope_is_its_loss_s() -> None:
    from mergewise.methods.doge import _Slope

    vectors = [random(6, 9, seed=i).double() for i in range(3)]
    lengths = [0.3, 0.2, 0.5]
    at = random(6, 9, seed=7).double().requires_grad_()
    merged = sum(w * (v + at) for w, v in zip(lengths, vectors, strict=True))
    torch.stack([(v * (v - merged)).sum(1).square().sum() for v in vectors]).sum().backward()
    ours = _Slope(vectors, lengths, torch.zeros(6, 0, dtype=torch.float64))(at.detach())
    torch.testing.assert_close(ours, at.grad)


@pytest.mark.parametrize("method", [*FAMILY, "doge", "opcm"])
def test_more_experts_than_rank_equal_and_zero_ones(method: str) -> None:
    a = torch.outer(random(3), random(4, seed=1))
    merged = delta(method, a, a, torch.zeros(3, 4), -a, random(3, 4, seed=2), a)
    assert torch.isfinite(merged).all()
    assert torch.isfinite(delta(method, a, torch.zeros(3, 4))).all()
    assert delta(method, torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
