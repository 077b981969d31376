"""The page that compares families of methods."""

import json

from benchmarks.lab.kinds import (
    MEASURED,
    PAGES,
    by_method,
    entries,
    figure,
    left_out,
    load,
    page,
    read,
)

COLUMN = {"name": "a", "metric": "accuracy", "best": "max", "expert": True, "examples": {}}


def run(score):
    return {"scores": {"a": score}, "scale": None, "seconds": None, "mebibytes": None,
            "validation": None}  # fmt: skip


def row(name, method, **runs):
    return {
        "name": name, "method": method, "parameters": {}, "scale": None, "data": "none",
        "examples": 0, "evaluations": 0, "failure": None, "runs": runs,
    }  # fmt: skip


RESULTS = {
    "family": "digits", "title": "Digits", "columns": [COLUMN], "seeds": [0],
    "rows": [
        row("pretrained", None, reference={"0": run(0.2)}),
        row("fine-tuned", None, reference={"0": run(0.7)}),
        row("linear", "linear", default={"0": run(0.3)}),
        row("karcher", "karcher", default={"0": run(0.4)}),
        row("ties keep .2", "ties", default={"0": run(0.45)}, tuned={"0": run(0.6)}),
        row("gone", "a method that is no more", default={"0": run(0.7)}),
    ],
}  # fmt: skip


def test_the_way_from_base_to_experts():
    found = {(e.name, e.setting): (e.kind, round(e.nai, 6)) for e in entries(read(RESULTS))}
    assert found == {
        ("linear", "default"): ("averages", 0.2),
        ("karcher", "default"): ("averages", 0.4),
        ("ties keep .2", "default"): ("task vectors", 0.5),
        ("ties keep .2", "tuned"): ("task vectors", 0.8),
    }


def test_the_page_has_best_and_median():
    text = page({"digits": list(entries(read(RESULTS)))})
    assert "| Averages and interpolation | 40.0 karcher; 30.0 of 2 |" in text
    assert "| Task vectors, element by element | 80.0 ties keep .2; 80.0 of 1 |" in text
    assert "* digits: ties keep .2 50.0, karcher 40.0, linear 20.0" in text


def test_numbers_by_method():
    labs = {"digits": list(entries(read(RESULTS)))}
    found = json.loads(by_method(labs, {"slerp": "needs two models", "ties": "not said"}))
    assert found["labs"] == ["digits"] and found["absent"] == {"slerp": "needs two models"}
    assert found["rows"] == {
        "linear": {"linear": {"digits": [20.0]}},
        "karcher": {"karcher": {"digits": [40.0]}},
        "ties": {"ties keep .2": {"digits": [50.0, 80.0]}},
    }


def test_a_lab_that_is_not_published_is_left_out(tmp_path):
    (tmp_path / "digits.json").write_text(json.dumps(RESULTS))
    assert list(load(tmp_path)) == ["digits"]


def test_what_is_published_is_up_to_date():
    labs = load()
    assert (PAGES / "kinds.md").read_text("utf-8") == page(labs), (
        "run: python -m benchmarks.lab.kinds --publish"
    )
    assert (PAGES / "kinds.svg").read_text("utf-8") == figure(labs)
    assert (PAGES / MEASURED).read_text("utf-8") == by_method(labs, left_out()), (
        "run: python -m benchmarks.lab.kinds --publish"
    )
