"""lm-evaluation-harness: its results flattened; one real run where it is installed."""

import importlib.util
import json

import pytest
from small_language import random_llama, task

from mergewise.errors import MissingExtraError, TaskError
from mergewise.evidence.evaluators.lm_eval import LmEval
from mergewise.evidence.evaluators.multiple_choice import MultipleChoice

RESULTS = {
    "results": {
        "arc": {
            "alias": "arc",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "acc_norm,none": 0.75,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm": {
            "alias": "gsm",
            "exact_match,strict-match": 0.1,
            "exact_match,flexible-extract": 0.2,
        },
        "wiki": {"word_perplexity,none": 12.5},
    },
    "higher_is_better": {
        "arc": {"acc": True, "acc_norm": True},
        "wiki": {"word_perplexity": False},
    },
    "n-samples": {"arc": {"original": 9, "effective": 4}, "gsm": {"effective": 3}},
}
ROWS = [
    {"question": "Sky?", "choices": ["blue", "green as grass"], "answer": 0},
    {"question": "Snow in June?", "choices": ["no", "yes"], "answer": 1},
    {"question": "Two?", "choices": ["deux", "trois", "quatre"], "answer": 2},
    {"question": "Who?", "choices": ["he", "she"], "answer": 0},
]


def scored(monkeypatch, results=RESULTS, **options):
    evaluator = task(LmEval, {}, tasks="arc,gsm,wiki", **options)
    monkeypatch.setattr(evaluator, "check", lambda: None)
    monkeypatch.setattr(evaluator, "_evaluated", lambda model: results)
    return evaluator, evaluator.score(random_llama(), "test")


def test_results_are_flattened(monkeypatch):
    evaluator, found = scored(monkeypatch)
    assert found.metrics == {
        "arc/acc_norm": 0.75,
        "arc/acc": 0.5,
        "gsm/exact_match/strict-match": 0.1,
        "gsm/exact_match/flexible-extract": 0.2,
        "wiki/word_perplexity": 12.5,
    }
    assert evaluator.primary == next(iter(found.metrics)) == "arc/acc_norm"
    assert evaluator.metrics["arc/acc_norm"].best == "max"
    assert found.examples == 7


def test_the_metric_may_be_named(monkeypatch):
    evaluator, found = scored(monkeypatch, metric="wiki/word_perplexity")
    assert next(iter(found.metrics)) == "wiki/word_perplexity"
    assert evaluator.metrics["wiki/word_perplexity"].best == "min"
    with pytest.raises(TaskError, match=r"no metric 'acc'; lm-eval returned arc/acc, arc/acc_norm"):
        scored(monkeypatch, metric="acc")


def test_names_are_short_where_there_is_one_task(monkeypatch):
    one = {**RESULTS, "results": {"arc": RESULTS["results"]["arc"]}}
    assert scored(monkeypatch, one)[1].metrics == {"acc_norm": 0.75, "acc": 0.5}


def test_options_are_checked_before_a_model_is_loaded(monkeypatch, tmp_path):
    with pytest.raises(MissingExtraError, match=r"mergewise\[eval\]"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        task(LmEval, {}, tasks="arc").check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(TaskError, match="tasks is empty"):
        task(LmEval, {}, tasks=" , ").check()
    with pytest.raises(TaskError, match="gone is not a folder"):
        task(LmEval, {}, tasks="arc", include_path=str(tmp_path / "gone")).check()


def local_task(folder):
    """A multiple-choice task whose data lie beside its file."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "data.jsonl").write_text(lines)
    (folder / "small_facts.yaml").write_text(
        f"""
task: small_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
    )
    return folder


def test_a_local_task_agrees_with_our_own_evaluator(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = random_llama(1)
    evaluator = task(
        LmEval, {}, tasks="small_facts", include_path=str(local_task(tmp_path)), metric="acc"
    )
    evaluator.check()
    found = evaluator.score(model, "test")
    ours = task(MultipleChoice, ROWS).score(model, "test")
    assert found.metrics["acc"] == ours.metrics["accuracy"]
    assert found.examples == 4
    some = task(LmEval, {}, tasks="small_facts", include_path=str(tmp_path), limit=2)
    assert some.score(model, "test").examples == 2
    with pytest.raises(TaskError, match="lm-eval knows no task no_such_task"):
        task(LmEval, {}, tasks="no_such_task").score(model, "test")
