"""Methods of matrices: worked examples and properties of their papers, and what they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _driver import merge_tensor
from small_models import load, save

from mergewise import merge, merge_state_dicts
from mergewise.methods import MatrixMethod, all_methods
from mergewise.methods.iso_cts import own_rank

METHODS = sorted(n for n, m in all_methods().items() if isinstance(m, MatrixMethod))
FILLING = [name for name in METHODS if "null" in all_methods()[name].params]


def delta(method: str, *deltas: Any, **more: Any) -> torch.Tensor:
    """The merged task vector of matrices, over a base of zeros."""
    given = [torch.as_tensor(d, dtype=torch.float32) for d in deltas]
    return merge_tensor(given, method, torch.zeros_like(given[0]), **more)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_stored_the_other_way_round_the_result_is_too(method: str) -> None:
    a, b = random(6, 9), random(6, 9, seed=1)
    straight = delta(method, a, b)
    turned = delta(method, a.T, b.T, turned=True)
    torch.testing.assert_close(turned, straight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_stacked_experts_are_merged_each_by_itself(method: str) -> None:
    if method == "opcm":
        pytest.skip("divides by one norm for all of them")
    more = {"density": 1.0} if method == "doge" else {}
    a, b = random(3, 6, 9), random(3, 6, 9, seed=1)
    each = [delta(method, a[i], b[i], **more) for i in range(3)]
    together = delta(method, a, b, kind="stack", **more)
    torch.testing.assert_close(together, torch.stack(each), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("otherwise", "expected"), [("mean", 2.0), ("sum", 4.0), ("base", 0.0)])
def test_what_it_is_not_for_follows_the_policy(
    method: str, otherwise: str, expected: float
) -> None:
    names = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight")
    base = {names[0]: torch.zeros(4, 3), names[1]: torch.zeros(3)}
    experts = [{n: torch.full_like(t, v) for n, t in base.items()} for v in (1.0, 3.0)]
    given = {"otherwise": otherwise, "lambda": 1.0, "tensors": "linear"}
    merged = merge_state_dicts(experts, method, base=base, parameters=given)
    for name in names:
        assert torch.equal(merged[name], torch.full_like(base[name], expected))


def test_tsv_m_gives_each_task_its_share_of_the_rank() -> None:
    # of orthogonal tasks nothing is lost but what lies beyond the share
    a, b = torch.diag(torch.tensor([3.0, 2.0, 0, 0])), torch.diag(torch.tensor([0, 0, 5.0, 1.0]))
    torch.testing.assert_close(delta("tsv_m", a, b), a + b)
    c = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0]))
    torch.testing.assert_close(delta("tsv_m", c, b)[:2, :2], torch.diag(torch.tensor([3.0, 2.0])))


def test_tsv_m_of_one_expert_is_that_expert() -> None:
    a = random(5, 7)
    torch.testing.assert_close(delta("tsv_m", a), a, rtol=1e-5, atol=1e-5)


def test_iso_c_evens_out_the_sum() -> None:
    # Delta = diag(3, 1) gives diag(2, 2)
    torch.testing.assert_close(
        delta("iso_c", [[2.0, 0], [0, 1]], [[1.0, 0], [0, 0]]), 2 * torch.eye(2)
    )
    a, b = random(6, 9), random(6, 9, seed=1)
    merged = torch.linalg.svdvals(delta("iso_c", a, b))
    torch.testing.assert_close(merged, torch.full((6,), float(merged.mean())))
    torch.testing.assert_close(merged.sum(), torch.linalg.svdvals(a + b).sum())


def test_iso_c_raises_no_direction_that_is_rounding() -> None:
    a = torch.outer(random(6), random(9, seed=1))
    assert torch.linalg.matrix_rank(delta("iso_c", a)) == 1
    assert torch.linalg.matrix_rank(delta("iso_c", a, null="fill")) == 6


def test_iso_cts_gives_each_task_directions_of_its_own() -> None:
    # rank 4, half of it common: k = 2, one direction each; the sum is diag(5, 4, 1, 0.5) here
    a, b = torch.diag(torch.tensor([5.0, 0, 1, 0])), torch.diag(torch.tensor([0.0, 4, 0, 0.5]))
    merged = delta("iso_cts", a, b, common_space_fraction=0.5)
    torch.testing.assert_close(merged, (5 + 4 + 1 + 0.5) / 4 * torch.eye(4))
    values = torch.linalg.svdvals(delta("iso_cts", random(6, 9), random(6, 9, seed=1)))
    torch.testing.assert_close(values, values.mean().expand(6))


def test_iso_cts_without_own_directions_is_iso_c() -> None:
    a, b = random(6, 9), random(6, 9, seed=1)
    merged = delta("iso_cts", a, b, common_space_fraction=1.0)
    torch.testing.assert_close(merged, delta("iso_c", a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 2, 3, 5, 11, 40])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
def test_iso_cts_shares_no_more_rank_than_there_is(experts: int, fraction: float) -> None:
    for rank in (1, 2, 3, 7, 24):
        own = own_rank(rank, experts, fraction)
        assert 0 <= own * experts <= rank


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_cart_of_full_rank_is_the_average(scale: float) -> None:
    a, b, c = (random(6, 9, seed=i) for i in range(3))
    merged = delta("cart", a, b, c, rank=1.0, **{"lambda": scale})
    torch.testing.assert_close(merged, (a + b + c) / 3, rtol=1e-5, atol=1e-5)


def test_cart_adds_what_is_strongest_in_each_difference() -> None:
    a = torch.diag(torch.tensor([3.0, 0, 0]))
    b = torch.diag(torch.tensor([0.0, 3.0, 0]))
    c = torch.zeros(3, 3)
    # mean diag(1, 1, 0), tops 2 at (0, 0) and at (1, 1); the third's is some rank-1 part of
    # -diag(1, 1, 0), whose directions are equally strong
    rest = delta("cart", a, b, c, rank=0.3) - torch.diag(torch.tensor([3.0, 3, 0]))
    values = torch.linalg.svdvals(rest)
    torch.testing.assert_close(values, torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-5)


def test_star_keeps_the_nuclear_norm() -> None:
    # S = 6, 3, 1: eta 0.6 is reached by the first, 0.61 by the first two
    a = torch.diag(torch.tensor([6.0, 3.0, 1.0]))
    torch.testing.assert_close(delta("star", a, eta=0.59), torch.diag(torch.tensor([10.0, 0, 0])))
    two = torch.diag(torch.tensor([60 / 9, 30 / 9, 0]))
    torch.testing.assert_close(delta("star", a, eta=0.61), two)
    torch.testing.assert_close(delta("star", a, eta=1.0), a)
    torch.testing.assert_close(delta("star", a, 0 * a, eta=0.61), two / 2)


def test_subspace_boosting_raises_what_is_weak() -> None:
    # S = 6, 3, 1: the share 0.8 is reached at the second
    a = torch.diag(torch.tensor([6.0, 3.0, 1.0]))
    raised = torch.diag(torch.tensor([6.0, 3.0, 3.0]))
    torch.testing.assert_close(delta("subspace_boosting", a, beta=0.8), raised)
    torch.testing.assert_close(delta("subspace_boosting", a, beta=1.0), a)
    torch.testing.assert_close(delta("subspace_boosting", a, beta=0.0), 6 * torch.eye(3))
    flat = delta("subspace_boosting", torch.diag(torch.tensor([6.0, 3.0, 0])), beta=0.0)
    torch.testing.assert_close(flat, torch.diag(torch.tensor([6.0, 6.0, 0])))


def test_svc_takes_back_what_is_counted_twice() -> None:
    a = torch.diag(torch.tensor([3.0, 2.0]))
    # equal tasks: the sum is twice either, so it is halved
    torch.testing.assert_close(delta("svc", a, a), a)
    torch.testing.assert_close(delta("svc", a, a, weight=0.25), a / 2)
    torch.testing.assert_close(delta("svc", a, a, weight=0.25, alpha=0.1), a)
    # tasks that share nothing: s = 1, and alpha for the other's
    b = torch.diag(torch.tensor([3.0, 0]))
    c = torch.diag(torch.tensor([0, 2.0]))
    torch.testing.assert_close(delta("svc", b, c), b + c)
    torch.testing.assert_close(delta("svc", b, c, alpha=0.5), (b + c) * 2 / 1.5)


def test_svc_calibrates_another_merge() -> None:
    a, b = random(6, 9), random(6, 9, seed=1)
    merged = 0.7 * a + 0.7 * b
    after = delta("svc", a, b, merged, calibrate="last", alpha=0.3)
    at_once = delta("svc", a, b, weight=0.7, alpha=0.3)
    torch.testing.assert_close(after, at_once, rtol=1e-4, atol=1e-5)


def low_rank(rows: int, columns: int, rank: int, seed: int) -> torch.Tensor:
    return random(rows, rank, seed=seed) @ random(rank, columns, seed=seed + 100)


@pytest.mark.parametrize("method", ["core_space", "knots"])
@pytest.mark.parametrize(("rule", "share"), [("sum", 1.0), ("mean", 1 / 3)])
def test_linear_rules_lose_nothing_in_other_coordinates(
    method: str, rule: str, share: float
) -> None:
    deltas = [low_rank(20, 30, rank, seed) for seed, rank in enumerate((2, 3, 1))]
    merged = delta(method, *deltas, rule=rule, weight=[1.0, 0.5, -2.0])
    expected = share * (deltas[0] + 0.5 * deltas[1] - 2 * deltas[2])
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_core_space_sees_no_more_than_the_tasks_span() -> None:
    a, b = low_rank(20, 30, 2, 0), low_rank(20, 30, 2, 1)
    core = delta("core_space", a, b, rule="tsv")
    # of rank 2 each, the share of the full rank holds all as well
    torch.testing.assert_close(core, delta("tsv_m", a, b), rtol=1e-4, atol=1e-4)
    values = torch.linalg.svdvals(delta("core_space", a, b))
    torch.testing.assert_close(values[:4], values[:4].mean().expand(4), rtol=1e-4, atol=1e-4)
    assert float(values[4]) < 1e-4
    # the mean is over the core's 4 directions, not over 20
    iso = delta("core_space", a, b, rule="iso")
    torch.testing.assert_close(iso, 5 * delta("iso_c", a, b), rtol=1e-4, atol=1e-4)


def test_knots_elects_among_coordinates() -> None:
    # in a common orthonormal basis: rows of V scaled, where the second's small part is trimmed
    turn = torch.linalg.qr(random(3, 3)).Q
    a = torch.tensor([[4.0, 0.0, 3.0, 0, 0], [0.0, 2.0, 0.0, 0, 0], [0, 0, 0, 0, 0]])
    b = torch.tensor([[2.0, 0, 0, 0, 0], [0, 0, 0.0, 1, 0], [0, 0, 0, 0, 0]])
    merged = delta("knots", turn @ a, turn @ b, density=0.25)
    # two directions are left, ten elements each: the two largest are kept
    expected = torch.tensor([[3.0, 0, 3, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(merged, turn @ expected, rtol=1e-4, atol=1e-4)


def test_knots_over_the_whole_model_has_one_threshold() -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    base = {name: torch.zeros(2, 4) for name in names}
    first = torch.tensor([[8.0, 7, 6, 5], [0, 0, 0, 0]])
    second = torch.tensor([[0.0, 0, 0, 0], [4.0, 3, 2, 1]])
    expert = {names[0]: first, names[1]: second}
    given = {"density": 0.5, "granularity": "model"}
    merged = merge_state_dicts([expert], "knots", base=base, parameters=given)
    # one direction each, eight elements in all
    torch.testing.assert_close(merged[names[0]], first)
    torch.testing.assert_close(merged[names[1]], torch.zeros(2, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experts", [1, 2, 30])
def test_degenerate_matrices_stay_finite(method: str, experts: int) -> None:
    for shape in ((1, 1), (1, 5), (5, 1), (4, 6), (0, 3), (3, 0)):
        a = random(*shape)
        for deltas in ([a] * experts, [a, *([0 * a] * (experts - 1))], [0 * a] * experts):
            for more in ({}, {"null": "fill"} if method in FILLING else {}):
                merged = delta(method, *deltas, **more)
                assert merged.shape == a.shape
                assert torch.isfinite(merged).all()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((name, {}) for name in ("iso_c", "iso_cts", "tsv_m", "opcm", "core_space", "star")),
        ("subspace_boosting", {"beta": 0.9}),
    ],
)
@pytest.mark.parametrize("size", [1e-2, 1.0])
def test_rounding_of_experts_is_no_direction(method: str, more: Any, size: float) -> None:
    # what an adapter of rank 2 adds to float32 weights: changes much smaller than they are
    base = random(60, 40, seed=9)
    base[3] *= 30
    deltas = [size * low_rank(60, 40, 2, seed) / 60 for seed in range(3)]
    experts = [(base.double() + delta.double()).float() for delta in deltas]
    merged = merge_tensor(experts, method, base, **more)
    values = torch.linalg.svdvals(merged.double() - base.double())
    assert float(values[6:].max()) < 0.02 * float(values[0])
    exact = delta(method, *deltas, **more)
    torch.testing.assert_close(merged - base, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_experts_that_share_inputs_share_them_after_rounding_too() -> None:
    # adapters with one frozen A: their right vectors are the same two
    base, a = random(60, 40, seed=9), random(2, 40, seed=5)
    deltas = [1e-3 * random(60, 2, seed=seed) @ a for seed in range(3)]
    experts = [(base.double() + delta.double()).float() for delta in deltas]
    merged = merge_tensor(experts, "tsv_m", base)
    assert torch.linalg.matrix_rank(delta("tsv_m", *deltas)) == 2
    values = torch.linalg.svdvals(merged.double() - base.double())
    assert float(values[2:].max()) < 1e-3 * float(values[0])


@pytest.mark.parametrize("method", ["iso_c", "tsv_m"])
def test_a_filter_leaves_a_matrix_to_the_policy(method: str, tmp_path: Path) -> None:
    # as the authors of Iso-C and TSV-M leave CLIP's text_projection to the mean
    one, other = "text_projection.weight", "layers.0.fc.weight"
    states = [{n: random(3, 3, seed=9 * i) for n in (one, other)} for i in range(3)]
    paths = [str(save(tmp_path / f"m{i}", state)) for i, state in enumerate(states)]
    found = []
    for first in ("none", "matrices"):
        tensors = [{"filter": "text_projection", "value": first}, {"value": "matrices"}]
        models = [{"model": path} for path in paths[1:]]
        document = {"merge_method": method, "base_model": paths[0], "models": models}
        merge(document | {"parameters": {"tensors": tensors}}, tmp_path / first)
        found.append(load(tmp_path / first))
    mean = (states[1][one] + states[2][one]) / 2
    torch.testing.assert_close(found[0][one], mean)
    assert torch.equal(found[0][other], found[1][other])
    assert not torch.allclose(found[1][one], mean)
