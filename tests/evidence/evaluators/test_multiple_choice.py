"""Multiple choice by likelihood, against sums computed by hand."""

import pytest
import torch
from small_language import random_llama, task

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators.multiple_choice import MultipleChoice

ROWS = [
    {"question": "Sky?", "choices": ["blue", "green as grass"], "answer": 0},
    {"question": "Snow in June?", "choices": ["no", "yes", "x"], "answer": 2},
    {"question": "Zwölf?", "choices": ["drei", "über"], "answer": 1},
]


def by_hand(model, prompt, choice):
    before = model.tokenizer(prompt)["input_ids"]
    ids = before + model.tokenizer(choice)["input_ids"][1:]
    with torch.inference_mode():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids)))


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_likeliest_choice(seed, batch_size):
    model = random_llama(seed)
    found = task(MultipleChoice, ROWS, batch_size=batch_size).score(model, "test")
    plain, norm = [], []
    for row in ROWS:
        sums = [by_hand(model, row["question"], " " + c) for c in row["choices"]]
        plain.append(max(range(len(sums)), key=sums.__getitem__))
        each = [s / len(c.encode()) for s, c in zip(sums, row["choices"], strict=True)]
        norm.append(max(range(len(each)), key=each.__getitem__))
    right = [int(p == row["answer"]) for p, row in zip(plain, ROWS, strict=True)]
    assert found.outcomes == {"prediction": plain, "correct": right}
    assert found.metrics["accuracy"] == sum(right) / 3
    assert (
        found.metrics["accuracy_norm"]
        == sum(p == row["answer"] for p, row in zip(norm, ROWS, strict=True)) / 3
    )


def test_length_makes_the_difference():
    """Among random bytes the shorter choice is likelier, and per byte often the longer."""
    rows = [
        {"question": f"{i}?", "choices": ["ab", "abcdefghijklmnop"], "answer": 0} for i in range(20)
    ]
    found = task(MultipleChoice, rows).score(random_llama(1), "test")
    assert found.metrics["accuracy"] == 1
    assert found.metrics["accuracy_norm"] < 1


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"choices": ["x", "y", "z"], "answer": 2}, 2),
        ({"choices": ["x", "y", "z"], "answer": "2"}, 2),
        ({"choices": ["x", "y", "z"], "answer": "y"}, 1),
        ({"choices": ["x", "y", "z"], "answer": "C"}, 2),
        ({"choices": ["x", "y", "z"], "answer": "b"}, 1),
        ({"choices": ["2", "1", "0"], "answer": "2"}, 0),
        ({"choices": ["B", "A"], "answer": "A"}, 1),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "B"}, 1),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "1"}, 0),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": 1}, 0),
    ],
)
def test_ways_to_name_the_answer(record, answer):
    evaluator = task(MultipleChoice, [{"question": "?", **record}])
    assert evaluator._problem({"question": "?", **record}, 0).answer == answer


def test_choices_that_are_the_same_for_all():
    rows = [{"question": "Good film.", "answer": "positive"}, {"question": "Bad.", "answer": "0"}]
    found = task(MultipleChoice, rows, choices="negative|positive").score(random_llama(), "test")
    assert len(found.outcomes["correct"]) == 2


def test_other_names_and_solved_examples():
    row = {"ctx": "A b", "endings": ["c", "d"], "label": "1"}
    data = {"test": Data([row]), "train": Data([{"question": "q", "answer": "a"}])}
    model = random_llama(2)
    found = task(
        MultipleChoice, data, prompt="{ctx}", choices="endings", answer="label",
        choice=", {choice}", shots=1,
    ).score(model, "test")  # fmt: skip
    sums = [by_hand(model, "q\na\n\nA b", f", {c}") for c in "cd"]
    assert found.outcomes["prediction"] == [int(sums[1] > sums[0])]


def test_a_prompt_that_is_too_long_loses_its_beginning():
    model = random_llama(positions=16)
    rows = [{"question": "x" * 40, "choices": ["ab", "cd"], "answer": 0}]
    found = task(MultipleChoice, rows).score(model, "test")
    assert found.notes == ("2 choices too long, cut at the prompt's beginning",)
    same = [{**rows[0], "question": "x" * 14}]
    model.tokenizer = random_llama(bos=False).tokenizer
    short = task(MultipleChoice, same).score(model, "test")
    assert found.outcomes == short.outcomes and short.notes == ()


def test_broken_records_and_options_are_errors():
    def check(**change):
        task(MultipleChoice, [{**ROWS[0], **change}]).check()

    check()
    with pytest.raises(DataError, match=r"row 1: answer 2 is none of the 2 choices"):
        check(answer=2)
    with pytest.raises(DataError, match="answer -1 is none"):
        check(answer=-1)
    with pytest.raises(DataError, match="answer 'C' is none"):
        check(answer="C")
    with pytest.raises(DataError, match="at least two choices"):
        check(choices=["a"])
    with pytest.raises(DataError, match="no list of choices in field 'choices'"):
        check(choices="a")
    with pytest.raises(DataError, match="no field 'right'"):
        task(MultipleChoice, ROWS, answer="right").check()
    with pytest.raises(TaskError, match=r"must contain '\{choice\}'"):
        task(MultipleChoice, ROWS, choice="{question}").check()
