"""The share of an old model with the fewest negative flips, on answers that are known."""

import _line
import pytest

from mergewise.errors import GuideError
from mergewise.guides import guide

RULES = """
def place(model):
    weights = dict(model.module.named_parameters())
    return float(weights["model.norm.weight"].detach()[0]) - 1

def answers(model, records, split):
    c = place(model)
    correct = [int(r["from"] <= c <= r["to"]) for r in records]
    return {"accuracy": sum(correct) / len(correct)}, {"correct": correct}

def mute(model, records, split):
    return {"accuracy": 1.0}
"""
EXAMPLES = [
    {"from": 0.0, "to": 0.45},  # right only near the old model
    {"from": 0.0, "to": 0.65},
    {"from": 0.55, "to": 1.0},
    {"from": 0.55, "to": 1.0},
    {"from": 0.95, "to": 1.0},  # only the new model
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    (root / "rules_of_a_test.py").write_text(RULES)
    return _line.save(root, old=0.0, new=1.0)


def tasks(models, function="answers"):
    place = {"function": f"rules_of_a_test:{function}", "path": str(models)}
    return _line.tasks(**place, metric="accuracy", data={"validation": EXAMPLES})


def chosen(models, names=("old", "new"), method="linear", **settings):
    parts = settings.pop("parts", {})
    recipe = _line.soup(models, names, method, **parts)
    return guide(recipe, "backward_compatible", tasks=tasks(models), **settings)


def test_within_epsilon_the_fewest_flips(models):
    # accuracy of the new model is 3/5, with 2/5 flips; at 0.6 it is 3/5 too, with 1/5 flips
    found = chosen(models, steps=5)
    assert _line.weights(found) == [0.4, 0.6]
    assert any("alpha 0.4: accuracy 0.6, negative flips 0.2: chosen" in n for n in found.notes)
    assert any("alpha 1: accuracy 0.4, negative flips 0" in note for note in found.notes)
    # 0.4 is right on two, as the old model is, and loses nothing
    loose = chosen(models, steps=5, epsilon=0.25)
    assert _line.weights(loose) == [0.6, 0.4]


def test_which_is_the_old_one_may_be_said(models):
    found = chosen(models, ("new", "old"), old="old", steps=5)
    assert _line.weights(found) == [0.6, 0.4] and _line.labels(found) == ["new", "old"]
    with pytest.raises(GuideError, match=r"old: one of .*old, .*new expected, got 'elder'"):
        chosen(models, old="elder")


def test_a_base_is_the_old_model(models):
    parts = {"base_model": str(models / "old")}
    found = chosen(models, ("new",), "task_arithmetic", parts=parts, steps=5)
    assert _line.weights(found) == [0.6]
    with pytest.raises(GuideError, match=r"write `normalize: false`"):
        chosen(models, ("new",), "ties", parts=parts | {"parameters": {"normalize": True}})


def test_a_method_with_an_alpha_of_its_own(models):
    parts = {
        "base_model": str(models / "old"),
        "parameters": {"alpha": 0.9, "importance": "none"},
    }
    recipe = _line.soup(models, ["new"], "bcwi", each={}, **parts)
    made = guide(recipe, "backward_compatible", tasks=tasks(models), steps=5)
    setting = made.recipe.output.parameters["alpha"]
    assert setting.conditions[0].value == 0.4
    assert any("alpha 0.4: accuracy 0.6, negative flips 0.2: chosen" in n for n in made.notes)


def test_tasks_without_answers_by_example_are_refused(models):
    with pytest.raises(GuideError, match=r"task near does not tell which examples are right"):
        guide(
            _line.soup(models, ["old", "new"]), "backward_compatible", tasks=tasks(models, "mute")
        )


def test_more_models_are_refused(models):
    with pytest.raises(GuideError, match=r"expected two models without a base.*got 1"):
        chosen(models, ("new",))
