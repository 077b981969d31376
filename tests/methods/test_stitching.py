"""Localize-and-Stitch and OTA: hand-computed examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError

ZERO = torch.zeros(4)


def rows(*values: list[float]) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


def stitched(base: Tensor, experts: list[dict[str, Tensor]], **parameters: Any) -> Tensor:
    return merge_state_dicts(
        experts, "localize_and_stitch", base={"w": base}, parameters=parameters
    )["w"]


def masked(experts: list[dict[str, Tensor]], masks: list[dict[str, Tensor]], **base: Tensor) -> Any:
    return merge_state_dicts(
        experts,
        "localize_and_stitch",
        base=base or {"w": torch.zeros_like(experts[0]["w"])},
        parameters={"localize": "mask"},
        evidence=[{"mask": mask} for mask in masks],
    )


def test_owners_share_an_element_equally() -> None:
    experts = rows([2.0, 4.0, 6.0], [8.0, 10.0, 12.0])
    got = masked(experts, rows([1.0, 1.0, 0.0], [0.0, 1.0, 1.0]))["w"]
    assert got.tolist() == [2.0, 7.0, 12.0]
    experts = rows([4.0, 2.0, 9.0, 9.0], [8.0, 9.0, 6.0, 9.0])
    got = masked(experts, rows([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]))["w"]
    assert got.tolist() == [6.0, 2.0, 6.0, 0.0]


def test_three_owners_have_a_third_each() -> None:
    experts = rows([3.0], [6.0], [0.0])
    assert masked(experts, rows([1.0], [1.0], [1.0]))["w"].item() == 3.0


def test_tensors_without_a_mask_keep_the_base() -> None:
    experts = [{"w": torch.ones(2), "b": torch.ones(2)}] * 2
    base = {"w": torch.zeros(2), "b": torch.full((2,), 5.0)}
    merged = masked(experts, rows([1.0, 0.0], [0.0, 0.0]), **base)
    assert merged["w"].tolist() == [1.0, 0.0]
    assert merged["b"].tolist() == [5.0, 5.0]


def test_the_largest_changes_of_the_whole_model() -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(5)}
    expert = {"a": torch.tensor([1.0, -8.0, 2.0]), "b": torch.tensor([3.0, 4.0, -7.0, 5.0, 6.0])}
    given = {"density": 0.375}
    merged = merge_state_dicts([expert], "localize_and_stitch", base=base, parameters=given)
    assert merged["a"].tolist() == [0.0, -8.0, 0.0]
    assert merged["b"].tolist() == [0.0, 0.0, -7.0, 0.0, 6.0]


def test_a_graft_of_everything_is_the_expert_and_of_nothing_the_base() -> None:
    base, expert = torch.tensor([1.0, 2.0, 3.0, 4.0]), rows([2.0, 1.0, 5.0, 4.5])
    assert torch.equal(stitched(base, expert, density=1.0), expert[0]["w"])
    assert torch.equal(stitched(base, expert, density=0.0), base)


def test_disjoint_parts_are_added() -> None:
    experts = rows([9.0, 1.0, 0.5, 0.2], [0.1, 0.2, -9.0, 1.0])
    got = stitched(ZERO, experts, density=0.5, granularity="tensor")
    assert got.tolist() == [9.0, 1.0, -9.0, 1.0]


def ota(values: list[Any], moments: list[Any], base: Any = (0.0,), **parameters: Any) -> Tensor:
    return merge_state_dicts(
        [{"w": torch.tensor(value)} for value in values],
        "ota",
        base={"w": torch.tensor(base)},
        parameters=parameters,
        evidence=[{"adam": {"w": torch.tensor(v)}} for v in moments],
    )["w"]


@pytest.mark.parametrize(
    ("power", "expected"), [(0.5, 5 / 3), (1.0, 1.4), (2.0, (16 * 1 + 1 * 3) / 17)]
)
def test_the_power_of_the_curvature(power: float, expected: float) -> None:
    assert ota([[1.0], [3.0]], [[4.0], [1.0]], power=power).item() == pytest.approx(expected)


def test_equal_curvature_is_the_mean_and_its_scale_is_immaterial() -> None:
    assert ota([[1.0], [3.0]], [[4.0], [4.0]]).item() == pytest.approx(2.0)
    moments = [[1e-16, 3e-16], [5e-16, 1e-17]]
    one = ota([[1.0, 2.0], [3.0, 5.0]], moments, [0.0, 0.0])
    other = ota([[1.0, 2.0], [3.0, 5.0]], [[v * 1e9 for v in m] for m in moments], [0.0, 0.0])
    torch.testing.assert_close(one, other)


def test_a_large_eps_makes_it_the_mean() -> None:
    values, moments = [[1.0], [3.0]], [[4e-20], [1e-20]]
    assert ota(values, moments).item() == pytest.approx(5 / 3)
    assert ota(values, moments, eps=1e-2).item() == pytest.approx(2.0)


def test_the_least_salient_changes_are_masked() -> None:
    # saliencies v d^2: 4, 1, 9, 16 and 1, 100, 4, 0.25
    values = [[2.0, 1.0, 1.0, 4.0], [1.0, 5.0, 2.0, 0.5]]
    moments = [[1.0, 1.0, 9.0, 1.0], [1.0, 4.0, 1.0, 1.0]]
    base = [0.0] * 4
    got = ota(values, moments, base, density=0.5)
    assert got.tolist() == pytest.approx([0.0, 5.0, (3 * 1 + 1 * 2) / 4, 4.0])
    same = ota(values, moments, base, threshold=[4.5, 2.0])
    assert same.tolist() == pytest.approx(got.tolist())


def test_saliency_is_curvature_times_the_changes_square() -> None:
    # v d^2: 4 and 9, where v d: 4 and 3, and v^2 d^2: 16 and 9
    assert ota([[1.0, 3.0]], [[4.0, 1.0]], [0.0, 0.0], density=0.5).tolist() == [0.0, 3.0]
    assert ota([[1.0, 3.0]], [[4.0, 1.0]], [0.0, 0.0], threshold=5.0).tolist() == [0.0, 3.0]
    # and 4 and 2 against 2 and 2: more than the change alone
    assert ota([[1.0, 1.4]], [[4.0, 1.0]], [0.0, 0.0], density=0.5).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("moment", ["adam", "fisher"])
def test_curvature_at_the_end_of_what_floats_hold(moment: str) -> None:
    given = {"moment": moment, "power": 1.0, "eps": 0.0}
    merged = merge_state_dicts(
        rows([0.01], [0.03]), "ota", base={"w": torch.zeros(1)}, parameters=given,
        evidence=[{moment: {"w": torch.tensor([1e-44])}}] * 2,
    )  # fmt: skip
    assert merged["w"].item() == pytest.approx(0.02)


def test_where_all_are_masked() -> None:
    values, moments = [[2.0, 9.0], [4.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]
    base = [1.0, 1.0]
    assert ota(values, moments, base, density=0.5).tolist() == [1.0, 9.0]
    assert ota(values, moments, base, density=0.5, fallback="mean").tolist() == [3.0, 9.0]


def test_one_model_is_itself_where_it_is_not_masked() -> None:
    assert ota([[3.0, 5.0]], [[0.2, 0.0]], [1.0, 1.0]).tolist() == [3.0, 5.0]


def test_fisher_in_place_of_adam() -> None:
    merged = merge_state_dicts(
        rows([1.0], [3.0]),
        "ota",
        base={"w": torch.zeros(1)},
        parameters={"moment": "fisher", "power": 1.0},
        evidence=[{"fisher": {"w": torch.tensor([f])}} for f in (4.0, 1.0)],
    )
    assert merged["w"].item() == pytest.approx(1.4)


def test_a_share_and_a_threshold_are_one_too_many() -> None:
    with pytest.raises(MergewiseError, match=r"density 0.5 and threshold 1 both say"):
        ota([[1.0]], [[1.0]], density=0.5, threshold=1.0)
    with pytest.raises(MergewiseError, match=r"for some models only"):
        ota([[1.0], [1.0]], [[1.0], [1.0]], threshold=[1.0, None])
