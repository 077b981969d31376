"""Pictures of what guides found: numbers that can be read, colours that compare."""

import re
from types import SimpleNamespace

import pytest

from mergewise.errors import GuideError
from mergewise.guides import Map, get_guide
from mergewise.report.guides import guide_dict, picture


def drawn(*maps):
    return picture(SimpleNamespace(maps=maps), "Title")


def one(expert, *values, what="weight"):
    return Map(expert, what, {f"h.{i}": {"mlp": value} for i, value in enumerate(values)})


def colours(svg):
    return re.findall(r'fill="(#[0-9a-f]{6})"><title>', svg)


def test_small_numbers_are_not_drawn_as_zero():
    svg = drawn(one("a", 0.0004, 0.02, what="importance"))
    assert ">0.0004<" in svg and ">0.02<" in svg and ">0.00<" not in svg


def test_shares_have_two_decimals():
    svg = drawn(one("a", 0.3, 0.8375, 0.0))
    assert ">0.30<" in svg and ">0.84<" in svg and ">0.00<" in svg


def test_one_number_has_one_colour_in_all_experts():
    first, second, third, fourth = colours(drawn(one("a", 0.2, 0.3), one("b", 0.3, 0.9)))
    assert second == third != first
    assert fourth not in (first, second)


def test_titles_of_narrow_maps_are_told_apart():
    svg = drawn(one("models/maths", 0.2), one("models/code", 0.3))
    assert ">weight: models/maths<" in svg and ">weight: models/code<" in svg


def test_nothing_to_draw():
    with pytest.raises(GuideError, match="one number a model"):
        drawn()


def test_the_dictionary_says_what_is_run():
    needs = {name: guide_dict(get_guide(name))["needs"] for name in ("slta", "greedy_soup")}
    assert (needs["slta"]["data"], needs["slta"]["tasks"]) == (True, False)
    assert (needs["greedy_soup"]["data"], needs["greedy_soup"]["tasks"]) == (False, True)
