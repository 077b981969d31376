"""Greedy soups on models whose scores are known exactly."""

import _line
import pytest
from safetensors.torch import load_file

from mergewise.engine import merge
from mergewise.errors import GuideError, InterruptedMergeError, TaskError
from mergewise.guides import _scoring, guide, write_recipe


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = tmp_path_factory.mktemp("soups")
    return _line.save(root, at=0.0, plus=0.25, minus=-0.25, far=25.0, more=0.5)


def cooked(folder, names, method="linear", tasks=None, **settings):
    parts = settings.pop("parts", {})
    recipe = _line.soup(folder, names, method, **parts)
    return guide(recipe, "greedy_soup", tasks=tasks or _line.tasks(), **settings)


def test_a_model_at_the_target_stays_alone(pool):
    found = cooked(pool, ["far", "plus", "at", "minus"])
    assert _line.labels(found) == ["at"]
    assert "7 scorings of models and merges on near (validation split)" in found.notes
    tried = [note for note in found.notes if note.endswith(": left out")]
    assert [len(note.split(" + ")) for note in tried] == [2, 2, 2]
    assert tried[-1].split(": ")[0].endswith("far") and tried[0].split(": ")[0].endswith("plus")


def test_models_on_both_sides_of_the_target_make_it(pool, tmp_path):
    found = cooked(pool, ["plus", "far", "minus"])
    assert _line.labels(found) == ["plus", "minus"] and _line.weights(found) == [0.5, 0.5]
    merge(found.recipe, tmp_path / "out")
    merged, target = (load_file(f / "model.safetensors") for f in (tmp_path / "out", pool / "at"))
    assert all(merged[name].equal(target[name]) for name in target)


def test_equal_scores_go_by_the_recipes_order_and_strictness(pool):
    assert _line.labels(cooked(pool, ["minus", "plus", "more"])) == ["minus", "plus"]
    assert _line.labels(cooked(pool, ["at", "minus"])) == ["at"]


def test_an_expert_that_changes_nothing_stays_if_that_is_asked(pool, tmp_path):
    _line.save(tmp_path, twin=0.0)
    recipe = _line.soup(pool, ["at"])
    recipe["models"].append({"model": str(tmp_path / "twin"), "parameters": {"weight": 1}})
    for accept, count in (("strict", 1), ("not_worse", 2)):
        found = guide(recipe, "greedy_soup", tasks=_line.tasks(), accept=accept)
        assert len(_line.labels(found)) == count


def test_a_restricted_pool(pool):
    base = _line.tasks() | {"base": str(pool / "more")}
    found = cooked(pool, ["plus", "far", "minus"], tasks=base, pool="restricted")
    assert _line.labels(found) == ["plus", "minus"]
    assert any("not in the pool" in note and note.endswith("far") for note in found.notes)
    margin = cooked(pool, ["at", "plus", "far"], pool="restricted", margin=1.0)
    assert any(note.endswith("far") for note in margin.notes if "not in the pool" in note)


def test_no_expert_as_good_as_the_base(pool):
    base = _line.tasks() | {"base": str(pool / "at")}
    with pytest.raises(GuideError, match=r"no expert is as good alone as the base.*set pool=all"):
        cooked(pool, ["plus", "minus"], tasks=base, pool="restricted")


def test_over_a_method_with_a_base_the_soup_of_one_is_merged_too(pool):
    found = cooked(
        pool, ["minus", "more"], "task_arithmetic",
        parts={"base_model": str(pool / "at"), "parameters": {"lambda": 0.5}},
    )  # fmt: skip
    # halved, the first is at -1/8; the mean of both at 1/16
    assert _line.labels(found) == ["minus", "more"]


def test_what_cannot_be_done_is_said_before_any_work(pool):
    with pytest.raises(GuideError, match="give a tasks file"):
        guide(_line.soup(pool, ["at", "plus"]), "greedy_soup")
    with pytest.raises(GuideError, match=r"slerp does not take that; methods that do: .*linear"):
        cooked(pool, ["plus"], "slerp", parts={"base_model": str(pool / "at"),
               "parameters": {"t": 0.5}})  # fmt: skip
    with pytest.raises(GuideError, match=r"linear has no base.*remove `base_model`"):
        cooked(pool, ["plus", "at"], parts={"base_model": str(pool / "at")})
    with pytest.raises(GuideError, match="there is none: write `base:`"):
        cooked(pool, ["plus"], pool="restricted")
    with pytest.raises(GuideError, match="margin belongs to a restricted pool"):
        cooked(pool, ["plus"], margin=0.1)


def test_a_score_that_fails_stops_with_its_message(pool, tmp_path):
    (tmp_path / "bad_of_a_test.py").write_text(
        "def score(m, r, s): raise ValueError('no such day')"
    )
    tasks = _line.tasks(function="bad_of_a_test:score", path=str(tmp_path))
    with pytest.raises(TaskError, match=r"task near: .*no such day"):
        cooked(pool, ["plus", "minus"], tasks=tasks)


def test_nothing_is_left_of_candidates(pool, tmp_path):
    said = []
    made = write_recipe(
        _line.soup(pool, ["plus", "minus"]), "greedy_soup", tmp_path / "soup.yml",
        tasks=_line.tasks(), told=said.append,
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["soup.yml"]
    assert len(said) == 2 and "(3 of at most 4)" in said[1]
    assert "# alone: " in made.text and made.text.count("near -") + made.text.count("near 0") >= 3


def test_a_merge_that_is_interrupted_is_an_interruption_and_nothing_stays(
    pool, tmp_path, monkeypatch
):
    def stopped(recipe, out, **options):
        out.mkdir()
        raise InterruptedMergeError("stopped")

    monkeypatch.setattr(_scoring, "merge", stopped)
    with pytest.raises(KeyboardInterrupt):
        cooked(pool, ["plus", "minus"], out=tmp_path / "soup.yml")
    assert list(tmp_path.iterdir()) == []


def test_unlike_metrics_are_told(pool):
    tasks = {"tasks": [_line.TASK, {**_line.TASK, "name": "far", "metric": "distance",
                                    "best": "min"}]}  # fmt: skip
    found = cooked(pool, ["plus", "at"], tasks=tasks)
    assert _line.labels(found) == ["at"]
    assert any("unlike metrics (distance, score)" in warning for warning in found.warnings)
    assert any("plus: -0.3125 (near -0.3125, far 0.3125)" in note for note in found.notes)
