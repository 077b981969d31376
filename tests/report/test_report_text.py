"""Values in words."""

import pytest

from mergewise.plan import collapse
from mergewise.report.text import clean, count, show_count, show_range, show_value


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("größe 重み", "größe 重み"),
        ("a\x1b[2J\n\x07", r"a\x1b[2J\n\x07"),
        ("abc\u202edef", r"abc\u202edef"),
    ],
)
def test_clean_leaves_text_and_escapes_control(raw, shown):
    assert clean(raw) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "none"), (True, "true"), (0.30000000000000004, "0.3"), (1.0, "1"), (7, "7")],
)
def test_values_look_as_in_a_recipe(value, shown):
    assert show_value(value) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5] * 30, "0.5"),
        ([1.0, 0.5, 0.0], "1, 0.5, 0"),
        ([i / 10 for i in range(11)], "0 … 1"),
        ([True, False] * 5, "true, false"),
    ],
)
def test_few_values_are_listed_many_are_a_range(values, shown):
    assert show_range(values) == shown


def test_numbers():
    assert [count(1, "error"), count(1200, "error")] == ["1 error", "1,200 errors"]
    assert [show_count(n) for n in (999_400, 1_246_592, 7_241_732_096)] == [
        "999,400",
        "1.25 M",
        "7.24 B",
    ]


def test_names_that_differ_in_numbers_share_a_pattern():
    names = [f"m.{i}.e.{j}.w" for i in (10, 0, 1, 2) for j in range(3)] + ["norm.w"]
    groups = collapse(names, lambda n: n, len)
    assert {g.pattern: len(g.items) for g in groups} == {
        "m.{0-2}.e.{0-2}.w": 9,
        "m.10.e.{0-2}.w": 3,
        "norm.w": 1,
    }
    assert groups[1].items[0] == "m.0.e.0.w"
