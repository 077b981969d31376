"""Methods of matrices: worked examples and properties of their papers, and what they leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise.methods import MatrixMethod, all_methods

METHODS = sorted(n for n, m in all_methods().items() if isinstance(m, MatrixMethod))


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
