"""Thresholds are exact: just as many elements as asked for, and none smaller than one left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mergewise import merge_state_dicts
from mergewise.engine import _compile, _memory, _select
from mergewise.engine._ranks import row_ranks

N = 70_000
BLOCK = 8192
Tensor = torch.Tensor


def draw(n: int = N, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def kept(delta: Tensor, density: float, method: str = "ties", **options: Any) -> Tensor:
    """Mask of the elements of a task vector that a method keeps (its base is zero)."""
    parameters = {"weight": 1.0, "density": density, "normalize": False} | options.pop("more", {})
    marked = torch.where(delta == 0, torch.full_like(delta, 0.0), delta)
    out = merge_state_dicts(
        [{"w": marked}],
        method,
        base={"w": torch.zeros_like(delta)},
        parameters=parameters,
        block_size=options.pop("block_size", BLOCK),
        **options,
    )
    return out["w"] != 0


def check(delta: Tensor, density: float, mask: Tensor) -> None:
    """The `int(density n)` largest, with any choice among equals; zeros cannot be seen."""
    size = delta.abs().flatten()
    mask = mask.flatten()
    count = max(1, int(density * size.numel()))
    least = size.sort(descending=True).values[count - 1]
    if least > 0:
        assert int(mask.sum()) == count
    assert mask[size > least].all()
    assert not mask[size < least].any()


SHAPES: dict[str, Callable[[], Tensor]] = {
    "normal": draw,
    "all equal": lambda: torch.full((N,), 0.25),
    "all zero": lambda: torch.zeros(N),
    "ascending": lambda: torch.arange(N) / N,
    "descending": lambda: torch.arange(N, 0, -1) / N,
    "two values": lambda: torch.where(draw() > 0.4, torch.tensor(1.0), torch.tensor(-2.0)),
    "one outlier": lambda: torch.full((N,), 1e-6).index_fill(0, torch.tensor([31_000]), 1e30),
    "one not zero": lambda: torch.zeros(N).index_fill(0, torch.tensor([69_999]), 1.0),
    "few values": lambda: (draw() * 2).round() + 0.5,
    "tiny": lambda: draw() * 1e-42,
    "huge": lambda: draw() * 1e37,
    "blocks apart": lambda: draw() * torch.arange(N).div(BLOCK).floor().mul(-3).exp2(),
    "alternating": lambda: torch.arange(N) % 2 + 1.0,
}
DENSITIES = (0.001, 0.2, 0.5, 0.9999)


@pytest.fixture(params=["compiled", "plain"])
def path(request: Any, monkeypatch: Any) -> str:
    if request.param == "plain":
        monkeypatch.setattr(_compile, "helpers", lambda: None)
    elif _compile.helpers() is None:
        pytest.skip("no C compiler here")
    else:
        monkeypatch.setattr(_memory, "FUSE_FROM_ELEMENTS", 0)
    return str(request.param)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_thresholds_equal_a_full_sort(shape: str, density: float, path: str) -> None:
    delta = SHAPES[shape]()
    check(delta, density, kept(delta, density))


def _all_below(tasks: Any, targets: Any, n: int) -> Any:
    for target in targets:
        target.low, target.high = 0, 0
    yield from ()


def _all_above(tasks: Any, targets: Any, n: int) -> Any:
    for target in targets:
        target.low = target.high = (1 << 64) - 1
    yield from ()


def _a_little_off(tasks: Any, targets: Any, n: int) -> Any:
    for target in targets:
        target.low, target.high = 0x3F00_0000 << 32, 0x3F00_1000 << 32
    yield from ()


@pytest.mark.parametrize("mislead", [_all_below, _all_above, _a_little_off])
@pytest.mark.parametrize("shape", ["normal", "all equal", "two values", "one outlier", "tiny"])
def test_a_sample_that_misleads(shape: str, mislead: Any, path: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(_select, "_bracket_by_sample", mislead)
    delta = SHAPES[shape]()
    for density in (0.01, 0.6):
        check(delta, density, kept(delta, density))


def test_too_many_keys_to_collect(path: str, monkeypatch: Any) -> None:
    """Brackets are narrowed until few enough keys lie inside."""
    monkeypatch.setattr(_select, "_COLLECT", 10)
    monkeypatch.setattr(_select, "_bracket_by_sample", _all_above)
    delta = draw()
    check(delta, 0.3, kept(delta, 0.3))


def test_a_tensor_whose_sample_is_all_small(path: str) -> None:
    """Large values where an evenly spread sample is least likely to look."""
    delta = draw(3_000_000) * 1e-6
    at = torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:40] * 1000 + 13
    for offset in range(100):
        delta[at + offset] = 1.0 + offset
    for density in (4000 / 3e6, 0.001, 0.5):
        check(delta, density, kept(delta, density, block_size=1 << 18))


def test_equal_elements_are_chosen_evenly() -> None:
    """No part of a tensor is preferred where all are equal."""
    mask = kept(torch.ones(100_000), 0.5)
    parts = mask.reshape(50, -1).sum(dim=1).float()
    # 2000 in each, kept with probability one half: a standard deviation of 22
    assert parts.sub(1000).abs().max() < 120
    columns = mask.reshape(-1, 50).sum(dim=0).float()
    assert columns.sub(1000).abs().max() < 120


def test_two_experts_break_ties_apart() -> None:
    out = merge_state_dicts(
        [{"w": torch.ones(40_000)}, {"w": torch.ones(40_000)}],
        "ties",
        base={"w": torch.zeros(40_000)},
        parameters={"weight": 1.0, "density": 0.5, "normalize": False},
    )
    both = int((out["w"] == 2).sum())
    assert abs(both - 10_000) < 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    delta = draw().to(dtype)
    check(delta.float(), 0.3, kept(delta, 0.3))


def test_outliers_are_dropped_exactly() -> None:
    delta = draw()
    mask = kept(delta, 0.3, "breadcrumbs", more={"gamma": 0.1})
    order = delta.abs().argsort(descending=True)
    wanted = torch.zeros(N, dtype=torch.bool)
    wanted[order[7000:28_000]] = True
    assert torch.equal(mask, wanted)


def test_one_threshold_for_a_whole_model() -> None:
    deltas = {"a": draw(5000) * 3, "b": draw(20_000, 1), "c": draw(700, 2) * 0.1}
    zero = {name: torch.zeros_like(d) for name, d in deltas.items()}
    parameters = {"weight": 1.0, "density": 0.25, "normalize": False, "granularity": "model"}
    out = merge_state_dicts([deltas], "ties", base=zero, parameters=parameters, block_size=1000)
    mask = torch.cat([out[name] != 0 for name in deltas])
    check(torch.cat(list(deltas.values())), 0.25, mask)


def test_rows_keep_their_own_share() -> None:
    delta = draw(60 * 50).reshape(60, 50) * torch.arange(1, 61)[:, None]
    mask = kept(delta, 0.3, more={"granularity": "row"}, block_size=128)
    for row, chosen in zip(delta, mask, strict=True):
        check(row, 0.3, chosen)


@pytest.mark.parametrize("columns", [1, 2, 7, 64, 1000])
def test_ranks_equal_a_sort(columns: int, path: str) -> None:
    rows = 20
    score = draw(rows * columns).abs()
    ranks = row_ranks(score, 3, columns, (1, 2)).reshape(rows, columns)
    wanted = score.reshape(rows, columns).argsort(dim=1).argsort(dim=1)
    assert torch.equal(ranks.long(), wanted)


@pytest.mark.parametrize("columns", [2, 12, 97])
def test_ranks_of_equal_scores(columns: int, path: str) -> None:
    """Each row a permutation, in the scores' order, and no column preferred."""
    rows = 4000
    score = torch.randint(0, 2, (rows, columns), generator=torch.Generator().manual_seed(0))
    score = score.float()
    score[: rows // 2] = 5.0
    ranks = row_ranks(score.flatten(), 0, columns, (-7, 12345)).reshape(rows, columns)
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(columns).float().expand(rows, -1))
    in_order = torch.gather(score, 1, ranks.argsort(dim=1))
    assert (in_order.diff(dim=1) >= 0).all()
    mean = ranks[: rows // 2].mean(dim=0)
    spread = columns / (12**0.5 * (rows / 2) ** 0.5)
    assert (mean - (columns - 1) / 2).abs().max() < 5 * spread
