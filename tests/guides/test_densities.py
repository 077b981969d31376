"""From changes to densities: the method's worked examples and exact properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergewise.guides._densities import hold_mean, shares, spread

CHANGES = st.dictionaries(
    st.sampled_from("abcde"),
    st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4).map(lambda v: dict(enumerate(v))),
    min_size=1,
)


def rows(**given):
    return {name: dict(enumerate(values)) for name, values in given.items()}


def flat(table):
    return [value for row in table.values() for value in row.values()]


def densities(changes, low=0.3, high=0.8, scope="model", digits=5):
    return spread(shares(changes, digits), low, high, scope)


def test_the_first_worked_example():
    found = shares(rows(q=[3, 1], u=[4, 12]), 5)
    assert found == rows(q=[0.75, 0.25], u=[0.25, 0.75])
    found = spread(found, 0.3, 0.8, "model")
    assert flat(found) == pytest.approx([0.8, 0.3, 0.3, 0.8])


def test_the_second_worked_example():
    found = spread(rows(q=[0.5, 0.5], u=[0.9, 0.1]), 0.3, 0.8, "model")
    assert flat(found) == pytest.approx([0.55, 0.55, 0.8, 0.3])


@given(CHANGES)
def test_every_components_mean_is_the_same_and_follows_from_the_extremes(changes):
    found = shares(changes, 15)
    assert all(sum(row.values()) == pytest.approx(1) for row in found.values())
    low, high = min(flat(found)), max(flat(found))
    if high - low < 1e-6:
        return
    mean = 0.3 + (1 / 4 - low) / (high - low) * 0.5
    for row in spread(found, 0.3, 0.8, "model").values():
        assert sum(row.values()) / 4 == pytest.approx(mean, abs=1e-6)


@given(CHANGES, st.sampled_from(["model", "component", "rank"]))
def test_one_value_is_the_least_and_one_the_greatest(changes, scope):
    found = densities(changes, scope=scope)
    assert all(0.3 - 1e-12 <= value <= 0.8 + 1e-12 for value in flat(found))
    if len(set(flat(shares(changes, 5)))) == 1:
        assert flat(found) == pytest.approx([0.55] * len(flat(found)))
    elif scope != "rank":
        assert min(flat(found)) == pytest.approx(0.3)
        assert max(flat(found)) == pytest.approx(0.8)


@given(CHANGES, st.sampled_from([0.125, 2.0, 1024.0]))
def test_scaling_all_changes_changes_nothing(changes, factor):
    scaled = {name: {i: factor * v for i, v in row.items()} for name, row in changes.items()}
    assert densities(scaled) == densities(changes)


def test_no_change_anywhere_gives_the_middle_and_equal_bounds_one_density():
    assert flat(densities(rows(q=[0, 0], u=[0, 0]))) == pytest.approx([0.55] * 4)
    assert set(flat(densities(rows(q=[3, 1], u=[4, 9]), 0.4, 0.4))) == {0.4}


def test_scopes_differ_as_they_say():
    found = rows(q=[0.2, 0.3, 0.5], u=[0.0, 0.1, 0.9])
    component = spread(found, 0.0, 1.0, "component")
    assert flat(component) == pytest.approx([0, 1 / 3, 1, 0, 1 / 9, 1])
    rank = spread(found, 0.0, 1.0, "rank")
    assert flat(rank) == pytest.approx([0.4, 0.6, 0.8, 0.0, 0.2, 1.0])


def test_equal_values_share_their_mean_rank():
    assert flat(spread(rows(q=[0.1, 0.1, 0.8]), 0.0, 1.0, "rank")) == pytest.approx(
        [0.25] * 2 + [1]
    )


def test_a_component_of_fewer_layers_weighs_no_more():
    found = shares({"q": {0: 1, 1: 1, 2: 1, 3: 1}, "rare": {2: 5.0}}, 5)
    assert found["rare"] == {2: 0.25} and found["q"][0] == 0.25


@given(CHANGES, st.floats(0, 1), st.integers(0, 1000))
def test_the_mean_is_held_and_the_order_kept(changes, target, seed):
    before = densities(changes)
    sizes = {n: {i: 1 + (seed * (i + 3)) % 97 for i in row} for n, row in before.items()}
    after = hold_mean(before, sizes, target)
    weights, values = flat(sizes), flat(after)
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert mean == pytest.approx(target, abs=1e-9)
    assert all(0 <= value <= 1 for value in values)
    pairs = sorted(zip(flat(before), values, strict=True))
    assert [v for _, v in pairs] == sorted(v for _, v in pairs)


def test_within_the_bounds_the_shift_is_one_number():
    after = hold_mean(rows(q=[0.3, 0.5]), rows(q=[3, 1]), 0.45)
    assert flat(after) == pytest.approx([0.4, 0.6])
