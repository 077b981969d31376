"""Programs judged by tests: layouts, prompts, pass@k."""

import gzip
import itertools
import json
import math

import pytest
from real_models import shared
from small_language import parrot, random_llama, task

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators._programs import problem_of, program_of
from mergewise.evidence.evaluators.code import Code, pass_at

ADD = {
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_setup_code": "one = 1",
    "test_list": ["assert add(one, 2) == 3", "assert add(-1, 1) == 0"],
}
HALVE = {
    "prompt": 'import math\n\ndef halve(n):\n    """Half of n, rounded down."""\n',
    "test": "def check(candidate):\n    assert candidate(7) == 3\n",
    "entry_point": "halve",
}


def rows_of(name, most):
    with gzip.open(shared("math_code", name), "rt") as file:
        return [json.loads(line) for line in itertools.islice(file, most)]


def is_python(text):
    try:
        return bool(compile(text, "text", "exec"))
    except SyntaxError:
        return False


def score(records, answer, **options):
    evaluator = task(Code, records, allow_code=True, **options)
    evaluator.check()
    return evaluator.score(parrot(answer), "test")


def test_the_prompt_of_mbpp_is_description_and_tests():
    asked = []
    found = score([ADD], lambda prompt: asked.append(prompt) or ADD["code"])
    assert asked == [
        '"""\nWrite a function to add two numbers.\nassert add(one, 2) == 3\n'
        'assert add(-1, 1) == 0\n"""\n'
    ]
    assert found.metrics == {"pass@1": 1, "compiles": 1}
    assert found.outcomes["correct"] == [1]
    assert found.outcomes["prediction"] == [ADD["code"]]


def test_wrong_programs_and_texts_fail():
    answers = iter(
        ["def add(a, b):\n    return a - b", "I cannot.", "def add(a, b):\n    return a+b"]
    )
    found = score([ADD] * 3, lambda _: next(answers), batch_size=1)
    assert found.outcomes["correct"] == [0, 0, 1]
    assert found.outcomes["reason"][0] == "AssertionError"
    assert found.metrics == {"pass@1": pytest.approx(1 / 3), "compiles": pytest.approx(2 / 3)}


def test_humaneval_completes_the_prompt():
    assert score([HALVE], lambda _: "    return n // 2\n").metrics["pass@1"] == 1
    assert score([HALVE], lambda _: "    return math.floor(n / 2)\n").metrics["pass@1"] == 1
    assert score([HALVE], lambda _: "    return n\n").metrics["pass@1"] == 0


def test_what_follows_the_program_is_cut():
    answer = "    return n // 2\n\nprint(halve(input()))\ndef"
    assert score([HALVE], lambda _: answer).metrics["pass@1"] == 1
    assert score([HALVE], lambda _: answer, stop="").metrics["pass@1"] == 0


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ADD, "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."),
        (HALVE, "```\ndef halve(n):\n    return math.floor(n / 2)\n```"),
        (HALVE, "```py\n    return n // 2"),
    ],
)
def test_a_fenced_block_is_the_program(record, said):
    assert score([record], lambda _: said, stop="").metrics["pass@1"] == 1


def test_the_network_and_files_are_spoken_of():
    notes = " ".join(score([ADD], lambda _: "x = 1").notes)
    assert "kept from the network by" in notes and "kept from other files by" in notes


def test_reference_solutions_pass_and_others_do_not():
    rows = rows_of("mbpp.jsonl.gz", 30)
    truth = [row["code"] for row in rows]
    by_prompt = {row["text"]: row["code"] for row in rows}
    right = score(rows, by_prompt.__getitem__, prompt="{text}", max_new_tokens=9999, stop="")
    assert right.outcomes["reason"] == [""] * 30
    assert right.metrics == {"pass@1": 1, "compiles": 1}
    other = dict(zip(by_prompt, [*truth[1:], truth[0]], strict=True))
    wrong = score(rows, other.__getitem__, prompt="{text}", max_new_tokens=9999, stop="")
    assert wrong.metrics == {"pass@1": 0, "compiles": 1}


def test_reference_solutions_in_the_other_layout_pass():
    rows = rows_of("mbpp_sanitized_427.jsonl.gz", 40)
    # some solutions are indented by less, or more, than the docstring above them, and
    # one defines a `check` that the test's own replaces
    rows = [row for row in rows if is_python(row["prompt"] + row["canonical_solution"])]
    rows = [row for row in rows if row["task_id"] != "MbppEval/56"]
    truth = {row["prompt"]: row["canonical_solution"] for row in rows}
    found = score(rows, truth.__getitem__, max_new_tokens=9999, stop="")
    assert found.outcomes["reason"] == [""] * len(rows)
    assert len(rows) > 10


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 1, 2), (4, 4, 2), (4, 0, 2), (5, 3, 4)]:
        subsets = list(itertools.combinations(range(n), k))
        share = sum(any(i < c for i in s) for s in subsets) / len(subsets)
        assert math.isclose(pass_at(n, c, k), share)


def test_samples():
    said = itertools.cycle(["def add(a, b):\n    return a + b", "no way", "x = 1", "y = 2"])
    options = {"samples": 4, "k": 2, "temperature": 0.8}
    found = score([ADD, ADD], lambda _: next(said), **options)
    assert found.metrics == {"pass@1": 0.25, "compiles": 0.75, "pass@2": 0.5}
    assert found.examples == 2 and len(found.outcomes["correct"]) == 2
    assert set(task(Code, [ADD], **options).metrics) == set(found.metrics)


def test_solved_examples():
    asked = []
    data = {"test": [HALVE], "train": [ADD]}
    evaluator = task(Code, {k: Data(v) for k, v in data.items()}, allow_code=True, shots=1)
    evaluator.score(parrot(lambda p: asked.append(p) or "    return n // 2"), "test")
    assert asked[0].startswith("Write a function to add two numbers.\ndef add")


def test_a_real_generation_is_tested():
    found = task(Code, [ADD, HALVE], allow_code=True, max_new_tokens=8).score(
        random_llama(3), "test"
    )
    assert found.metrics["pass@1"] == 0


def test_a_block_with_the_whole_function_keeps_the_prompts_imports():
    problem = problem_of(HALVE, 0, "t")
    assert program_of(problem, "```\ndef halve(n): return 1\n```").startswith("import math\ndef")


def test_what_cannot_be_run_is_an_error_before_any_model_is_loaded():
    with pytest.raises(TaskError, match="say `allow_code: true`"):
        task(Code, [ADD]).check()
    with pytest.raises(TaskError, match="say `allow_code: true`"):
        task(Code, [ADD]).score(parrot(str), "test")
    with pytest.raises(DataError, match="row 1: neither MBPP's fields"):
        score([{"text": "a"}], str)
    with pytest.raises(DataError, match="test_list must be a list"):
        score([{**ADD, "test_list": "assert 1"}], str)
    with pytest.raises(DataError, match="entry_point must be a function's name"):
        score([{**HALVE, "entry_point": "x); import os; ("}], str)
    with pytest.raises(TaskError, match="4 samples of temperature 0"):
        score([ADD], str, samples=4)
    with pytest.raises(TaskError, match="k 5 is more than samples 4"):
        score([ADD], str, samples=4, k=5, temperature=1.0)
