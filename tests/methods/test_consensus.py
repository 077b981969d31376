"""Consensus and MagMax: worked examples of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.methods import Inputs, Settings, get_method


def delta(method: str, *deltas: list[float], **more: Any) -> list[float]:
    """The merged task vector over a base of zeros."""
    given = [torch.tensor(d) for d in deltas]
    merged: list[float] = merge_tensor(given, method, torch.zeros_like(given[0]), **more).tolist()
    return merged


ONE = {"lambda_": 1.0}


def test_consensus_drops_what_one_task_alone_uses() -> None:
    # masks (1, 0, 1) and (0, 1, 1); the sum is (1, 1, 1)
    tasks = [1.0, 0.0, 2.0], [0.0, 1.0, -1.0]
    assert delta("consensus", *tasks, tall=0.4, **ONE) == [0, 0, 1]
    assert delta("consensus", *tasks, tall=0.4, least=1, **ONE) == [1, 1, 1]
    assert delta("consensus", *tasks, [0.0, 0.0, 0.0], tall=0.4, least=3, **ONE) == [0, 0, 0]


@pytest.mark.parametrize(
    ("count", "least", "told"), [(1, {}, "1 model takes"), (2, {"least": 3}, "2 models take")]
)
def test_more_users_than_models_are_refused(count: int, least: dict[str, int], told: str) -> None:
    base, experts = {"w": torch.zeros(3)}, [{"w": torch.ones(3)}] * count
    with pytest.raises(MergewiseError, match=told):
        merge_state_dicts(experts, "consensus", base=base, parameters=least)
    enough = merge_state_dicts(experts, "consensus", base=base, parameters={"least": count})
    assert enough["w"].tolist() == pytest.approx([0.3 * count] * 3)


def test_a_mask_depends_on_its_own_threshold() -> None:
    # thresholds of 1: masks (0, 1, 1), (1, 0, 0); of 0.4: (1, 1, 1), (1, 1, 0)
    tasks = [1.0, -2.0, 3.0], [2.0, 1.0, -1.0]
    assert delta("consensus", *tasks, tall=1.0, **ONE) == [0, 0, 0]
    assert delta("consensus", *tasks, tall=0.4, **ONE) == [3, -1, 0]
    assert delta("consensus", *tasks, tall=[0.4, 1.0], **ONE) == [3, 0, 0]
    assert delta("consensus", *tasks, least=0, **ONE) == [3, -1, 2]


def test_of_one_task_everything_is_used() -> None:
    assert delta("consensus", [1.0, -2.0, 0.0], least=1, **ONE) == [1, -2, 0]


def test_consensus_of_ties_masks_the_ties_vector() -> None:
    # trimmed, (3, 0, 0) and (0, -2.5, 0) add up to (3, -2.5, 0). The first task uses element 1
    # alone (3 > 1.5 |0|, but 1 < 1.5 |-2.5 + 1|), the second elements 1 (2 > 1.5 |3 - 2|) and 2
    tasks = [3.0, -1.0, 0.0], [2.0, -2.5, 0.0]
    more = {"density": 0.34, "tall": 1.5, **ONE}
    assert delta("consensus", *tasks, merged="ties", **more) == [3, 0, 0]
    assert delta("consensus", *tasks, merged="ties", least=1, **more) == [3, -2.5, 0]


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (([3.0, -1.0], [-3.0, 2.0]), [-3, 2]),  # of equal magnitudes the later
        (([1.0, 5.0], [-2.0, 0.5], [0.0, -4.0]), [-2, 5]),
        (([1.0, 2.0],), [1, 2]),
    ],
)
def test_magmax_takes_the_largest_change(
    tasks: tuple[list[float], ...], expected: list[float]
) -> None:
    assert delta("magmax", *tasks, **ONE) == expected
    assert delta("magmax", *tasks) == [v / 2 for v in expected]


def test_the_ties_vector_is_trimmed_over_the_whole_model() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    experts = [{"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([9.0, 8.0])}] * 2
    given = {"merged": "ties", "density": 0.5, "lambda": 1.0}
    merged = merge_state_dicts(experts, "consensus", base=base, parameters=given)
    assert merged["a"].tolist() == [0, 0]
    assert merged["b"].tolist() == [18, 16]


def test_what_only_ties_would_use_is_not_asked_for() -> None:
    consensus = get_method("consensus")
    defaults = Settings({name: param.default for name, param in consensus.params.items()})
    x = Inputs()
    assert consensus.scores(x, defaults) == []
    for more in ({"score": "fisher"}, {"granularity": "row"}):
        changed = Settings({**vars(defaults), **more})
        assert not consensus.needs(changed) and not consensus.ranked(changed)


def test_a_normalized_sum_is_divided_and_its_masks_are_not() -> None:
    tasks = [1.0, -2.0, 3.0], [2.0, 1.0, -1.0]
    assert delta("consensus", *tasks, weight=2.0, normalize=True, **ONE) == [1.5, -0.5, 0]
