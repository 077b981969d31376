"""Finding answers in texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergewise.errors import TaskError
from mergewise.evidence.evaluators._answers import extraction, number, right_answer


def find(name, text):
    return extraction(name, "t")(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 2+2=<<2+2=4>>4\n#### 4", "4"),
        ("#### 1,234", "1234"),
        ("#### $1,000.50 and #### 7", "1000.5"),
        ("####-3.0", "-3"),
        ("the answer is 4", None),
        ("#### four", None),
        ("", None),
    ],
)
def test_the_number_after_the_mark(text, expected):
    assert find("gsm8k", text) == find("strict", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are 12 eggs and 5 hens, so 17.", "17"),
        ("costs $1,250,000.", "1250000"),
        ("12,34", "34"),
        ("10-3", "3"),
        ("10 - 13 = -3", "-3"),
        ("= \N{MINUS SIGN}3", "-3"),
        ("x = .50", "0.5"),
        ("v1.2.3", "0.3"),
        ("-0.0", "0"),
        ("none", None),
        ("- , . $", None),
    ],
)
def test_the_last_number(text, expected):
    assert find("last_number", text) == find("flexible", text) == expected


@given(st.integers(-(10**12), 10**12))
def test_every_way_of_writing_a_whole_number_is_one_number(n):
    ways = [f"{n}", f"{n:,}", f"{n}.0", f"{n:,}.00"]
    assert {number(way) for way in ways} == {str(n)}
    assert {find("last_number", f"It is {way}.") for way in ways} == {str(n)}
    assert {find("gsm8k", f"#### {way}") for way in ways} == {str(n)}


def test_numbers_are_not_written_with_exponents():
    assert number("100000000000000000000") == "100000000000000000000"
    assert number("1e5") is None


def test_texts_are_compared_without_case_space_and_outer_punctuation():
    assert find("text", "  The\nCat! ") == find("text", "the cat") == "the cat"
    assert find("text", "ﬁve") == "five"
    assert find("text", " .") is None


def test_a_pattern_of_the_users():
    assert find(r"regex:answer is \(([A-D])\)", "The answer is (B).") == "b"
    assert find(r"regex:[0-9,]+$", "1,000") == "1000"
    assert find("regex:x(y)?", "x") is None
    assert find("regex:q", "x") is None


def test_a_wrong_rule_is_an_error():
    with pytest.raises(TaskError, match=r"task t: extract 'gsm': expected gsm8k, strict"):
        extraction("gsm", "t")
    with pytest.raises(TaskError, match="unterminated"):
        extraction("regex:(a", "t")


def test_right_answers_may_lack_the_mark():
    assert right_answer("1,234", extraction("gsm8k", "t")) == "1234"
    assert right_answer("we have 3\n#### 5", extraction("gsm8k", "t")) == "5"
    assert right_answer("none", extraction("gsm8k", "t")) is None
