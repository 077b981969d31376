"""A recipe with a ``guide``: merged in one call, with the bytes of its explicit recipe."""

import json

import pytest
import yaml
from _guided_models import nudge, save
from small_language import random_llama

import mergewise
from mergewise.checkpoint import sha256_file
from mergewise.engine import merge as merge_unguided
from mergewise.errors import GuideError, MergewiseError, RecipeError
from mergewise.guides import write_recipe
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

DATA = {"a": "a rose is a rose\nby any other name", "b": "1 + 1 = 2\n2 + 2 = 4 and 4 + 4 = 8"}


@pytest.fixture
def guided(tmp_path, recipe, models):
    """The path of a recipe whose guide reads data that lies beside it."""
    for name, text in DATA.items():
        lines = [json.dumps({"text": line}) for line in text.splitlines()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def make(**guide):
        call = {
            "name": "lewis",
            "importance": "wanda",
            "data": {"a": "a.jsonl", "b": "b.jsonl"},
            **guide,
        }
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe(guide=call)))
        return path

    return make


def test_merging_gives_the_bytes_of_the_explicit_recipe(guided, tmp_path):
    path = guided(density_min=0.2)
    said = []
    mergewise.merge(path, tmp_path / "one", told=said.append)
    assert len(said) == 4  # two experts, and the base on the data of each
    made = write_recipe(
        path, "lewis", tmp_path / "explicit.yml",
        settings={"density_min": 0.2, "importance": "wanda"},
        each={name: tmp_path / f"{name}.jsonl" for name in DATA},
    )  # fmt: skip
    assert made.recipe.output.guide is None
    mergewise.merge(tmp_path / "explicit.yml", tmp_path / "two")
    weights = {sha256_file(tmp_path / out / "model.safetensors") for out in ("one", "two")}
    assert len(weights) == 1
    kept = (tmp_path / "one.evidence/recipe.yml").read_text()
    assert _document(kept) == _document(made.text)


def _document(text):
    """Without comments, which name files of evidence with the seconds they took."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_second_run_takes_up_what_was_collected(guided, tmp_path):
    mergewise.merge(guided(), tmp_path / "out")
    said = []
    mergewise.merge(guided(density_max=0.9), tmp_path / "out", told=said.append, overwrite=True)
    assert said == []
    (tmp_path / "a.jsonl").write_text('{"text": "something else"}')
    mergewise.merge(guided(), tmp_path / "out", told=said.append, overwrite=True)
    assert sorted(line.split(" of ")[1].split(" on ")[0].rsplit("/")[-1] for line in said) == [
        "a", "base",
    ]  # fmt: skip


def test_an_engine_does_not_run_what_has_yet_to_be_guided(guided, tmp_path):
    with pytest.raises(RecipeError, match="lewis has not been run"):
        merge_unguided(guided(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert any("yet to find" in warning for warning in build_plan(load_recipe(guided())).warnings)


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ({"name": "lewes"}, "did you mean"),
        ({"density_mim": 0.4}, "no setting 'density_mim'"),
        ({"data": {"a": "a.jsonl"}}, "no data for"),
        ({"data": {"c": "a.jsonl"}}, "no model of it is called 'c'"),
        ({"data": 3}, "a file, or a file for each expert"),
        ({"trust_remote_code": True}, "not a recipe's to say"),
        ({"name": "greedy_soup", "tasks": {"tasks": []}}, "the path of a tasks file"),
    ],
)
def test_what_it_cannot_do_is_said_at_its_line(guided, tmp_path, guide, words):
    path = guided(**guide)
    with pytest.raises(RecipeError, match=words) as found:
        mergewise.merge(path, tmp_path / "out")
    line = path.read_text().splitlines()[found.value.diagnostics[0].line - 1]
    assert "guide" in line or "data" in line
    assert not list(tmp_path.glob("out*"))


def test_a_recipe_does_not_run_code_unasked(tmp_path, models):
    (tmp_path / "score.py").write_text("raise SystemExit('ran')")
    task = {"name": "mine", "kind": "python", "function": "score.py:score"}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump({"tasks": [task]}))
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(models.root / n), "parameters": {"weight": 1}} for n in "ab"],
        "guide": {"name": "greedy_soup", "tasks": str(tmp_path / "tasks.yml")},
    }
    with pytest.raises(RecipeError, match="runs Python code"):
        mergewise.merge(recipe, tmp_path / "out")


def test_a_guide_needs_its_name(recipe):
    with pytest.raises(RecipeError, match="a mapping with the guide's `name`"):
        load_recipe(recipe(guide={"density_min": 0.2}))


def test_an_expert_of_another_base_is_told(models, tmp_path, recipe, evidence):
    module = random_llama(7).module
    nudge(module, 1)
    save(module, tmp_path / "stranger")
    asked = recipe()
    asked["models"][1]["model"] = str(tmp_path / "stranger")
    with pytest.raises(MergewiseError) as found:
        mergewise.write_recipe(asked, "lewis", tmp_path / "x.yml")
    assert isinstance(found.value, GuideError | MergewiseError)
    said = []
    made = mergewise.write_recipe(
        asked, "lewis", tmp_path / "x.yml", data=[{"text": "a rose is a rose"}], told=said.append
    )
    [warning] = made.warnings
    assert "stranger lies 1.4 of the base's norm" in warning
    assert said[0] == f"warning: {warning}"  # before anything is collected
