"""Every method on a few numbers, worked out by hand; and the edges where others have failed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _driver import merge_tensor
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.methods import Settings, get_method
from mergewise.methods._weights import shares


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def check(got: Tensor, *expected: Any) -> None:
    torch.testing.assert_close(got, t(*expected), rtol=1e-5, atol=1e-6)


ZERO = t(0, 0, 0, 0)


def test_linear() -> None:
    # (3·[1, 2] + 1·[5, 6]) / 4
    check(merge_tensor([t(1, 2), t(5, 6)], "linear", weight=[3.0, 1.0]), 2, 3)
    check(merge_tensor([t(1, 2), t(5, 6)], "linear", weight=[3.0, 1.0], normalize=False), 8, 12)


def test_weights_that_cancel_are_refused_before_any_data_is_read() -> None:
    settings = Settings({"weight": [0.1, 0.2, -0.3], "normalize": True})
    assert "sum to 0" in str(get_method("linear").problem(settings, 3))
    with pytest.raises(MergewiseError, match=r"sum to 0.*normalize: false"):
        shares([1.0, -1.0])


def test_task_arithmetic_with_all_weights_zero_is_the_base_even_if_normalized() -> None:
    check(merge_tensor([t(1, 2)], "task_arithmetic", t(5, 5), weight=0.0, normalize=True), 5, 5)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "dare_linear", "breadcrumbs", "della_linear"]
)
def test_task_vectors_whose_weights_cancel_are_not_divided(method: str) -> None:
    # base + (x - base) - (y - base), as mergekit does
    more = {"density": 1.0} | ({"gamma": 0.0} if method == "breadcrumbs" else {})
    got = merge_tensor(
        [t(1, 2), t(5, 9)], method, t(5, 5), weight=[1.0, -1.0], normalize=True, **more
    )
    check(got, 1, -2)


def test_slerp_of_perpendicular_vectors() -> None:
    # 90 degrees, a third of the way: sin 60 · b + sin 30 · x
    got = merge_tensor([t(0, 2)], "slerp", t(4, 0), t=1 / 3)
    check(got, 4 * math.sin(math.pi / 3), 2 * 0.5)


def test_slerp_of_opposite_vectors_is_linear() -> None:
    check(merge_tensor([t(-1, -2)], "slerp", t(1, 2), t=0.25), 0.5, 1.0)


def test_nuslerp_takes_its_place_on_the_arc_from_the_weights() -> None:
    # t = 1/(2+1): the same arc as above
    expected = (4 * math.sin(math.pi / 3), 2 * 0.5)
    check(merge_tensor([t(4, 0), t(0, 2)], "nuslerp", weight=[2.0, 1.0]), *expected)
    shifted = merge_tensor([t(5, 1), t(1, 3)], "nuslerp", t(1, 1), weight=[2.0, 1.0])
    check(shifted, expected[0] + 1, expected[1] + 1)


def test_nuslerp_by_row_and_by_column() -> None:
    a, b = t([1, 0], [1, 0]), t([0, 1], [2, 0])
    half = math.sqrt(0.5)
    # rows: perpendicular, then parallel; columns: parallel [1, 1] and [0, 2] at 45 degrees, zero
    rows = merge_tensor([a, b], "nuslerp", weight=1.0, nuslerp_flatten=False)
    check(rows, [half, half], [1.5, 0])
    columns = merge_tensor(
        [a, b], "nuslerp", weight=1.0, nuslerp_flatten=False, nuslerp_row_wise=True
    )
    share = math.sin(math.pi / 8) / math.sin(math.pi / 4)
    check(columns[:, 0], share, share * 3)
    # a zero vector has no angle: perpendicular by convention
    check(columns[:, 1], half, 0)


def test_nuslerp_with_cancelling_weights_is_the_midpoint() -> None:
    check(merge_tensor([t(1, 0), t(0, 1)], "nuslerp", weight=[-1.0, 1.0]), *[math.sqrt(0.5)] * 2)


def test_multislerp() -> None:
    # directions (1,0), (0,1) at weights 3/4, 1/4: m = (3,1)/√10; length 3/4·2 + 1/4·4 = 2.5
    got = merge_tensor([t(2, 0), t(0, 4)], "multislerp", weight=[3.0, 1.0])
    check(got, 2.5 * 3 / math.sqrt(10), 2.5 / math.sqrt(10))


def test_multislerp_of_cancelling_directions_is_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1000, generator=generator)
    got = merge_tensor([x, -3 * x, 0 * x], "multislerp", weight=[0.4, 0.4, 0.2])
    torch.testing.assert_close(got, 0.4 * x - 1.2 * x)


def test_karcher_of_two_is_halfway_at_the_mean_length() -> None:
    got = merge_tensor([t(1, 0), t(0, 3)], "karcher")
    check(got, 2 * math.sqrt(0.5), 2 * math.sqrt(0.5))


def test_karcher_of_three_has_no_pull_left() -> None:
    models = [t(1, 0, 0), t(0, 1, 0), t(0.6, 0, 0.8)]
    mean = merge_tensor(models, "karcher", max_iter=50, tol=1e-6)
    assert float(mean.norm()) == pytest.approx(1.0)
    angles = [math.acos(float(mean @ m)) for m in models]
    pull = sum(
        a / math.sin(a) * (m - math.cos(a) * mean) for a, m in zip(angles, models, strict=True)
    )
    assert float(pull.norm()) < 1e-3


def test_karcher_counts_zero_tensors_in_the_length_only() -> None:
    check(merge_tensor([t(1, 2), t(0, 0)], "karcher"), 0.5, 1.0)
    check(merge_tensor([t(0, 0), t(0, 0)], "karcher"), 0, 0)


def test_karcher_of_opposite_models_takes_the_first_direction() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1000, generator=generator)
    torch.testing.assert_close(merge_tensor([x, -x], "karcher"), x)


def test_ties_trims_elects_and_averages() -> None:
    # keep 2 of 4: [4, 0, 3, 0] and [0, -2, -5, 0]; signs +, -, -; disjoint means
    deltas = [t(4, 1, 3, 0.5), t(1, -2, -5, 0.5)]
    check(merge_tensor(deltas, "ties", ZERO, weight=1.0, density=0.5), 4, -2, -5, 0)


def test_ties_as_published() -> None:
    # the paper's settings: whole model, sum of the trimmed elects, mean of those that agree
    deltas = [t(4, -1, 2, 0.1, 0), t(-3, -2, 2, 0.2, 0), t(-2, 5, -3, 0.1, 0)]
    zero = torch.zeros(5)
    check(merge_tensor(deltas, "ties", zero, weight=1.0, density=0.6), -2.5, 5, 2, 0, 0)
    base = {"a": zero[:2], "b": zero[2:]}
    merged = merge_state_dicts(
        [{"a": d[:2], "b": d[2:]} for d in deltas],
        "ties",
        base=base,
        parameters={"weight": 1.0, "density": 0.6, "granularity": "model"},
    )
    check(torch.cat([merged["a"], merged["b"]]), -2.5, 5, 2, 0, 0)


def test_ties_divides_by_the_weights_that_agree() -> None:
    # weighted [2, 6] and [3, -3]: + twice; (2+3)/(2+3), 6/2
    deltas = [t(1, 3), t(1, -1)]
    check(merge_tensor(deltas, "ties", t(0, 0), weight=[2.0, 3.0]), 1, 3)
    sums = merge_tensor(deltas, "ties", t(0, 0), weight=[2.0, 3.0], normalize=False, lambda_=0.5)
    check(sums, 2.5, 3)


def test_ties_sign_by_sum_or_by_count() -> None:
    deltas = [t(3.0), t(-1.0), t(-1.0)]
    check(merge_tensor(deltas, "ties", t(0.0), weight=1.0), 3)
    check(merge_tensor(deltas, "ties", t(0.0), weight=1.0, sign="count"), -1)


def test_an_even_vote_goes_to_plus() -> None:
    check(merge_tensor([t(2.0), t(-2.0)], "ties", t(0.0), weight=1.0), 2)


def test_ties_thresholds_exact_or_keeping_equals() -> None:
    delta = t(1, 1, 1, 0.5)
    exact = merge_tensor([delta], "ties", ZERO, weight=1.0, density=0.5)
    assert int((exact != 0).sum()) == 2
    both = merge_tensor([delta], "ties", ZERO, weight=1.0, density=0.5, ties_at_threshold="keep")
    check(both, 1, 1, 1, 0)


def test_ties_by_row() -> None:
    delta = t([9, 8, 7, 6], [1, 2, 3, 4])
    base = torch.zeros(2, 4)
    got = merge_tensor([delta], "ties", base, weight=1.0, density=0.5, granularity="row")
    check(got, [9, 8, 0, 0], [0, 0, 3, 4])


@pytest.mark.parametrize("columns", [1, 3, 10, 100, 4096, 14336])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.29, 0.3, 0.5, 0.7, 1.0])
def test_a_row_keeps_the_floor_of_its_share_and_at_least_one(columns: int, density: float) -> None:
    delta = torch.rand(1, columns) + 1
    base = torch.zeros(1, columns)
    got = merge_tensor([delta], "ties", base, weight=1.0, density=density, granularity="row")
    wanted = max(1, math.floor(density * columns + 1e-9)) if density else 0
    assert int((got != 0).sum()) == wanted


def test_ties_rescaled_has_the_norm_it_had() -> None:
    # kept 4 of 4+3+2+1 = 10: factor 2.5
    got = merge_tensor([t(4, -3, 2, 1)], "ties", ZERO, weight=1.0, density=0.25, rescale=True)
    check(got, 10, 0, 0, 0)


SURVEY = t(9, 0.1, -5, 0.2, 3, -2, 1, 0.3, 0.4, 0.5)


def test_breadcrumbs_drops_the_top_and_keeps_the_next() -> None:
    # γn = 1 outlier (9), then the 4 largest
    got = merge_tensor([SURVEY], "breadcrumbs", 0 * SURVEY, weight=1.0, density=0.4, gamma=0.1)
    check(got, 0, 0, -5, 0, 3, -2, 1, 0, 0, 0)
    by_row = merge_tensor(
        [SURVEY], "breadcrumbs", 0 * SURVEY, weight=1.0, density=0.4, gamma=0.1, granularity="row"
    )
    check(by_row, 0, 0, -5, 0, 3, -2, 1, 0, 0, 0)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_breadcrumbs_without_outliers_is_trimming(granularity: str) -> None:
    options: dict[str, Any] = {"weight": 1.0, "density": 0.4, "granularity": granularity}
    got = merge_tensor([SURVEY], "breadcrumbs", 0 * SURVEY, gamma=0.0, **options)
    check(got, 9, 0, -5, 0, 3, -2, 0, 0, 0, 0)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_keeps_something_of_a_tiny_tensor(method: str, granularity: str) -> None:
    for gamma in (0.0, 0.01, 0.5, 1.0):
        options: dict[str, Any] = {"weight": 1.0, "density": 0.5, "granularity": granularity}
        got = merge_tensor([t(3.0)], method, t(0.0), gamma=gamma, **options)
        check(got, 3)


def test_breadcrumbs_ties_elects() -> None:
    got = merge_tensor([t(3, 1), t(-1, 1)], "breadcrumbs_ties", t(0, 0), weight=1.0, gamma=0.0)
    check(got, 3, 2)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_rescaled_by_density_keeps_elements_times_one_over_density(method: str) -> None:
    base, delta = torch.zeros(4000), torch.ones(4000)
    got = merge_tensor([delta], method, base, weight=1.0, density=0.25, rescale_by="density")
    assert set(got.tolist()) == {0.0, 4.0}
    assert abs(float((got != 0).float().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_dare_rescaled_by_norm_keeps_the_norm() -> None:
    delta = torch.arange(1.0, 101.0)
    got = merge_tensor([delta], "dare_linear", 0 * delta, weight=1.0, density=0.3)
    assert float(got.sum()) == pytest.approx(5050)
    raw = merge_tensor([delta], "dare_linear", 0 * delta, weight=1.0, density=0.3, rescale=False)
    assert set(raw.tolist()) <= {0.0, *delta.tolist()}


def test_della_keep_probabilities() -> None:
    # ranks 0, 3, 1, 2, 4 of |.1 .4 .2 .3 .5| with density .5 and epsilon .1
    delta = t(0.1, -0.4, 0.2, 0.3, -0.5)
    options: dict[str, Any] = {"weight": 1.0, "density": 0.5, "epsilon": 0.1}
    draws = [
        merge_tensor([delta], "della_linear", 0 * delta, seed=seed, rescale_by="density", **options)
        for seed in range(300)
    ]
    seen = torch.stack(draws).abs().amax(dim=0)
    check(seen, 0.25, 0.4 / 0.55, 0.2 / 0.45, 0.6, 0.5 / 0.6)
    kept = (torch.stack(draws) != 0).float().mean(dim=0)
    torch.testing.assert_close(kept, t(0.4, 0.55, 0.45, 0.5, 0.6), rtol=0, atol=0.13)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_on_rows_of_one_element(method: str) -> None:
    base, delta = torch.zeros(2000, 1), torch.ones(2000, 1)
    got = merge_tensor([delta], method, base, weight=1.0, density=0.3, rescale=False)
    assert abs(float((got != 0).float().mean()) - 0.3) < 0.06
    assert torch.isfinite(merge_tensor([t(1.0)], method, t(0.0), weight=1.0, density=0.3)).all()


def test_della_density_one_keeps_all_and_out_of_range_is_refused() -> None:
    delta = t(1, 2, 3, 4)
    check(merge_tensor([delta], "della_linear", ZERO, weight=1.0, density=1.0), 1, 2, 3, 4)
    method = get_method("della")
    for density, epsilon in ((0.1, 0.15), (0.9, 0.1), (0.5, 0.6)):
        settings = Settings({"density": [density], "epsilon": [epsilon]})
        assert "keep-probabilities" in str(method.selection.problem(settings))


@pytest.mark.parametrize(
    "method", ["ties", "dare_linear", "dare_ties", "breadcrumbs", "della", "della_linear"]
)
@pytest.mark.parametrize("rescale", [False, True])
def test_density_zero_gives_the_base(method: str, rescale: bool) -> None:
    base, expert = t(1, 2, 3), t(4, 4, 4)
    got = merge_tensor([expert], method, base, weight=1.0, density=0.0, rescale=rescale)
    assert torch.equal(got, base)


def test_sce_weights_by_energy() -> None:
    # energies 1 and 9: weights .1, .9; no conflict: one agreeing model where the other is 0
    got = merge_tensor([t(1, 0, 0, 0), t(0, 3, 0, 0)], "sce", ZERO)
    check(got, 1, 3, 0, 0)
    both = merge_tensor([t(1.0), t(3.0)], "sce", t(0.0))
    check(both, 0.1 * 1 + 0.9 * 3)


def test_sce_weights_do_not_depend_on_the_scale_of_the_changes() -> None:
    for scale in (1.0, 1e-4, 1e-12):
        got = merge_tensor([t(scale), t(3 * scale)], "sce", t(0.0))
        assert float(got) == pytest.approx(2.8 * scale, rel=1e-5)


def test_sce_selects_by_variance_among_the_elements_that_differ() -> None:
    # variances 0, 1, 4, 0: half of two elements is the third; it alone sets the weights 1:25
    deltas = [t(7, 1, 1, 7), t(7, 3, 5, 7)]
    got = merge_tensor(deltas, "sce", ZERO, select_topk=0.5)
    check(got, 0, 0, (1 * 1 + 25 * 5) / 26, 0)


def test_sce_may_select_for_the_weights_alone() -> None:
    # as above: weights 1/26 and 25/26, for all elements
    deltas = [t(7, 1, 1, 7), t(7, 3, 5, 7)]
    got = merge_tensor(deltas, "sce", ZERO, select_topk=0.5, selects="weights")
    check(got, 7, (1 + 25 * 3) / 26, (1 * 1 + 25 * 5) / 26, 7)


def test_model_stock() -> None:
    # cosines of (1,0), (1,1): 1/√2; t = 2c/(1+c)
    c = math.sqrt(0.5)
    ratio = 2 * c / (1 + c)
    check(merge_tensor([t(1, 0), t(1, 1)], "model_stock", t(0, 0)), ratio, ratio / 2)


def test_model_stock_ratio_does_not_depend_on_the_scale_of_the_changes() -> None:
    big = merge_tensor([t(1, 0), t(1, 1)], "model_stock", t(0, 0))
    small = merge_tensor([t(1e-5, 0), t(1e-5, 1e-5)], "model_stock", t(0, 0))
    torch.testing.assert_close(small * 1e5, big)


def test_model_stock_by_row_and_at_its_pole() -> None:
    a, b = t([1, 0], [1, 0]), t([1, 1], [-1, 0])
    c = math.sqrt(0.5)
    ratio = 2 * c / (1 + c)
    # the second row's changes are opposite: cosine −1 is the pole, the base is kept
    got = merge_tensor([a, b], "model_stock", torch.zeros(2, 2), filter_wise=True)
    check(got, [ratio, ratio / 2], [0, 0])
    check(merge_tensor([t(6, 5), t(4, 5)], "model_stock", t(5, 5)), 5, 5)


def test_nearswap() -> None:
    # distances 1, 4, 0: shares 1, .5, 1
    check(merge_tensor([t(1, 4, 7)], "nearswap", t(0, 0, 7), t=2.0), 1, 2, 7)


def test_arcee_fusion() -> None:
    # rows of equal divergence, so importance orders like |change|: 0 0 0 .1 .2 .3 .4 9
    base = torch.zeros(1, 8)
    delta = t([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 9])
    # Q1 = idx 1 = 0, Q2 = idx 3 = .1, Q3 = idx 5 = .3: cut .1 + 1.5·.3 = .55
    check(merge_tensor([delta], "arcee_fusion", base), [0, 0, 0, 0, 0, 0, 0, 9])


def test_ram_sums_unique_and_averages_shared_changes() -> None:
    check(merge_tensor([t(3, 1, 5), t(1, 4, 3)], "ram", t(1, 1, 1)), 3, 4, 4)


def test_ramplus_enlarges_unique_changes() -> None:
    # expert 1: unique 1, shared 1: ratio min(1, .2); factor 1 + .5·.2. expert 2: unique 0
    deltas = [t(2, 0, 4), t(0, 0, 2)]
    got = merge_tensor(deltas, "ramplus_tl", t(0, 0, 0), r=0.5, alpha=0.2)
    check(got, 2 * 1.1, 0, 3)


def test_passthrough() -> None:
    check(merge_tensor([t(1, 2)], "passthrough"), 1, 2)
    check(merge_tensor([t(1, 2)], "passthrough", scale=[-0.5]), -0.5, -1)
