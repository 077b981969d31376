"""Functions of the user's."""

import sys

import pytest
from small_language import random_llama, task

from mergewise.errors import TaskError
from mergewise.evidence.evaluators import Metric
from mergewise.evidence.evaluators.python import PythonFunction

MODULE = """
import torch

def score(model, records, split):
    parameters = sum(p.numel() for p in model.module.parameters())
    return {"parameters": parameters, "score": torch.tensor(0.5)}

def lengths(model, records, split):
    each = [len(r["text"]) for r in records]
    return {"length": sum(each), "test": split == "test"} | {}, {"length": each}

def plain(model, records, split):
    each = [len(r["text"]) for r in records]
    return {"length": sum(each)}, {"length": each}

def short(model, records, split):
    return {"score": 1.0}, {"correct": [1]}

def broken(model, records, split):
    return records[99]

def text(model, records, split):
    return {"score": "good"}

def nan(model, records, split):
    return {"score": float("nan")}

class Judge:
    def __call__(self, model, records, split):
        return {"score": 2}

judge = Judge()
number = 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_metrics_of_a_test.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_metrics_of_a_test", None)


def function(folder, name, data=("ab", "cde"), **options):
    place = f"my_metrics_of_a_test:{name}"
    return task(PythonFunction, list(data), function=place, path=str(folder), **options)


def test_metrics_of_a_mapping(folder):
    evaluator = function(folder, "score")
    evaluator.check()
    before = list(sys.path)
    found = evaluator.score(random_llama(), "test")
    assert found.metrics["score"] == 0.5 and found.metrics["parameters"] > 1000
    assert found.examples == 2 and sys.path == before


def test_outcomes_and_the_named_metric(folder):
    evaluator = function(folder, "plain", metric="length", best="min")
    assert evaluator.primary == "length"
    assert evaluator.metrics["length"].best == "min"
    found = evaluator.score(random_llama(), "test")
    assert found.metrics == {"length": 5} and found.outcomes == {"length": [2, 3]}


def test_objects_that_can_be_called(folder):
    assert function(folder, "judge").score(random_llama(), "test").metrics == {"score": 2}


def test_roles_and_caching(folder):
    evaluator = function(folder, "score", role="image_classifier")
    assert evaluator.role() == "image_classifier"
    assert evaluator.mark() is None


def test_two_folders_may_have_modules_of_one_name(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_metrics_of_a_test.py").write_text("def score(*_): return {'score': 9}\n")
    one, two = function(folder, "score"), function(other, "score")
    model = random_llama()
    for _ in range(2):
        assert one.score(model, "test").metrics["score"] == 0.5
        assert two.score(model, "test").metrics["score"] == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent is not a function of that module"),
        ("number", "is not a function"),
        ("Judge", "is not a function"),
    ],
)
def test_what_cannot_be_called_is_found_before_a_model_is_loaded(folder, name, message):
    with pytest.raises(TaskError, match=message):
        function(folder, name).check()


def test_a_module_that_is_not_there(folder, tmp_path):
    with pytest.raises(TaskError, match="no module 'no_such_module'; `path` names the folder"):
        task(PythonFunction, ["a"], function="no_such_module:f").check()
    with pytest.raises(TaskError, match="expected module:function"):
        task(PythonFunction, ["a"], function="no_colon").check()
    with pytest.raises(TaskError, match="nowhere is not a folder"):
        task(PythonFunction, ["a"], function="a:b", path=str(tmp_path / "nowhere")).check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"IndexError: list index out of range \(my_metrics_of_a_test.py, line 20\)"),
        ("text", "must return finite numbers by name"),
        ("nan", "must return finite numbers by name"),
        ("lengths", "must return finite numbers by name"),
        ("short", "outcome 'correct' has 1 values, not 2"),
        ("plain", "returned length, and not 'score'; name one of them as `metric`"),
    ],
)
def test_failures_of_the_function_are_explained(folder, name, message):
    with pytest.raises(TaskError, match=message):
        function(folder, name).score(random_llama(), "test")


def test_the_declared_metric_of_the_class_is_untouched(folder):
    function(folder, "plain", metric="length")
    assert list(PythonFunction.metrics) == ["score"]
    assert isinstance(PythonFunction.metrics["score"], Metric)
