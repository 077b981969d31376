"""Charts: what is drawn where, that names cannot become markup, and that colours can be read."""

import math
import re
from xml.etree import ElementTree

import pytest

from mergewise.report import _svg
from mergewise.report._heat import Scale
from mergewise.report.chart import dot_rows, heat_map

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """What is written, without what a resting pointer shows."""
    nodes = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return [(node.text or "") + "".join(child.tail or "" for child in node) for node in nodes]


def marks_at(svg: str) -> list[float]:
    """The x of every circle, from the left edge of its panel."""
    return [float(node.get("cx")) for node in ElementTree.fromstring(svg).iter(f"{SVG}circle")]


def test_heat_map_shows_every_number_and_what_is_missing():
    values = [[0.25, None], [-1.5, math.nan], ["failed", math.inf]]
    shown = texts(heat_map("Scores", ["a", "b", "c"], ["x", "y"], values))
    assert shown[0] == "Scores"
    assert {"0.250", "−1.500", "failed"} <= set(shown)
    assert shown.count("–") == 3


def test_heat_map_refuses_values_of_another_shape():
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        heat_map("t", ["a", "b"], ["x"], [[1.0]])
    with pytest.raises(ValueError, match="1 rows and 2 columns"):
        heat_map("t", ["a"], ["x", "y"], [[1.0, 2.0]], shades=[[1.0]])


def test_names_from_files_cannot_become_markup():
    hostile = "</svg><script>alert(1)</script>\x00\x1b[2J"
    for svg in (
        heat_map(hostile, [hostile], [hostile], [[1.0]], notes=[hostile]),
        dot_rows(hostile, [(hostile, {hostile: 1.0})], hostile, lines={hostile: 2.0}),
    ):
        assert "<script>" not in svg
        assert hostile.partition("\x00")[0] in "".join(ElementTree.fromstring(svg).itertext())


def test_long_names_are_shortened_in_the_middle_and_kept_in_full():
    name = "organisation/" + "x" * 80 + "-v2"
    svg = heat_map("t", [name], ["column"], [[1.0]])
    [short] = [t for t in texts(svg) if t.startswith("org")]
    assert "…" in short and short.endswith("-v2")
    assert _svg.text_width(short) <= 240
    assert f"<title>{name}</title>" in svg


def test_everything_lies_inside_the_picture():
    columns = ["short", "a rather long name of a column at the end of the table"]
    svg = heat_map("t", ["row"], columns, [[1.0, 2.0]])
    width = float(ElementTree.fromstring(svg).get("width"))
    last = max(float(x) for x in re.findall(r"rotate\(-35 ([\d.]+) ", svg))
    assert last + 0.8 * 100 < width


def test_dots_further_right_are_larger_and_missing_ones_are_not_drawn():
    rows = [("a", {"s": 1.0}), ("b", {"s": 3.0}), ("c", {"s": None}), ("d", {"s": 2.0})]
    legend, a, b, d = marks_at(dot_rows("t", rows, "score"))
    assert a < d < b and abs((a + b) / 2 - d) < 0.2
    assert legend < a


def test_error_bars_reach_from_low_to_high():
    svg = dot_rows("t", [("a", {"s": (2.0, 1.0, 4.0)}), ("b", {"s": 0.0})], "score")
    [(low, high)] = re.findall(r"M([\d.]+) [\d.]+v8m0 -4H([\d.]+)", svg)
    _, mean, zero = marks_at(svg)
    unit = (mean - zero) / 2
    assert float(low) == pytest.approx(zero + unit, abs=0.2)
    assert float(high) == pytest.approx(zero + 4 * unit, abs=0.2)


def test_a_line_is_inside_the_axis_even_where_no_dot_is():
    svg = dot_rows("t", [("a", {"s": 1.0})], "score", lines={"base": 9.0})
    assert "base" in texts(svg)
    assert max(float(t) for t in texts(svg) if re.fullmatch(r"[\d.]+", t)) >= 9


def test_what_lies_far_below_is_told_and_does_not_stretch_the_axis():
    rows = [("a", {"s": -410.2, "t": 20.0}), ("b", {"s": 0.0}), ("c", {"s": (-30.0, -90.0, 9.0)})]
    svg = dot_rows("t", rows, "score", least=-50)
    assert "◂ −410" in texts(svg) and "−400" not in texts(svg) and "−40" in texts(svg)
    _, zero, cut = marks_at(svg)  # the first is of the legend
    assert cut < zero
    [(low, _)] = re.findall(r"M([\d.]+) [\d.]+v8m0 -4H([\d.]+)", svg)
    unit = (zero - cut) / 30
    assert float(low) == pytest.approx(zero - 50 * unit, abs=0.3)
    near = [("a", {"s": 1.0})]
    assert dot_rows("t", near, "score", least=-50) == dot_rows("t", near, "score")


def test_series_differ_in_colour_and_shape_and_can_be_given():
    svg = dot_rows(
        "t", [("a", {"one": 1, "two": 2, "three": 3})], "x", marks={"two": ("#123456", "bar")}
    )
    assert svg.count("#123456") == 2
    assert svg.count("<circle") == 2 and svg.count("m-4.5 -4.5h9v9h-9z") == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.03, 2.98, [2.0, 2.2, 2.4, 2.6, 2.8, 3.0]),
        (-30.0, 40.0, [-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert _svg.ticks(low, high) == expected


@pytest.mark.parametrize("value", [0.0, 5.0, -2e-9, 1e12])
def test_ticks_of_a_single_value_enclose_it(value):
    at = _svg.ticks(value, value)
    assert at[0] < at[-1] and at[0] <= value <= at[-1]


def test_colours_go_from_light_to_dark_and_around_a_centre():
    plain = Scale(0.0, 1.0)
    assert plain.colour(-5) == plain.colour(0) != plain.colour(0.5) != plain.colour(1)
    assert plain.colour(7) == plain.colour(1) == "#08306b"
    middle = Scale(0.0, 3.0, centre=1.0)
    assert middle.colour(1.0) == "#f7f7f7"
    assert middle.colour(3.0) == "#2b5c9e"
    # one below is as far as one above: half way, not the full colour
    assert middle.colour(0.0) == _svg.between("#f7f7f7", "#b35806", 0.5)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("centre", [None, 0.5])
def test_numbers_can_be_read_on_every_colour(centre):
    scale = Scale(0.0, 1.0, centre)
    for i in range(101):
        ground = scale.colour(i / 100)
        assert contrast(ground, _svg.ink(ground)) >= 4.5


def test_an_empty_chart_is_still_a_chart():
    for svg in (heat_map("t", [], [], []), dot_rows("t", [], "x")):
        assert texts(svg)[0] == "t"
