"""AIM over the results of other methods."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mergewise
from mergewise.errors import GuideError
from mergewise.evidence import load_evidence
from mergewise.guides import guide, write_recipe


@pytest.fixture
def texts(tmp_path):
    """Generic text."""
    lines = ["the cat sat on the mat", "one two three four"]
    (tmp_path / "generic.jsonl").write_text("\n".join(json.dumps({"text": x}) for x in lines))
    return tmp_path / "generic.jsonl"


def state(folder):
    return {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}


def merged(tmp_path, document, texts, **settings):
    """The states of the base, of the merge alone and of the guided merge, and the guided recipe."""
    made = write_recipe(document, "aim", tmp_path / "aim.yml", data=texts, settings=settings)
    mergewise.merge(document, tmp_path / "alone")
    mergewise.merge(tmp_path / "aim.yml", tmp_path / "out")
    return state(tmp_path / "alone"), state(tmp_path / "out"), made


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_any_merge_is_relaxed_as_the_formula_says(tmp_path, models, recipe, texts, method):
    document = recipe(method)
    alone, out, _ = merged(tmp_path, document, texts, omega=0.25)
    base = state(models.root / "base")
    moments = load_evidence(tmp_path / "aim.evidence/base.safetensors")
    for name, plain in alone.items():
        wanted = plain
        if name in moments.tensors("input_moments"):
            a = moments.sums("input_moments", name)["sum_abs"].double()
            wanted = base[name] + (plain - base[name]) * (1 - 0.75 * a / a.max())
        assert torch.allclose(out[name], wanted, atol=1e-6), name
    assert any(not torch.equal(out[name], alone[name]) for name in out)


def test_omega_one_changes_nothing(tmp_path, recipe, texts):
    alone, out, _ = merged(tmp_path, recipe(), texts, omega=1.0)
    assert all(torch.equal(alone[name], out[name]) for name in alone)


def test_omega_nought_gives_the_strongest_channel_back(tmp_path, models, recipe, texts):
    _, out, _ = merged(tmp_path, recipe("task_arithmetic", each={"weight": 1}), texts, omega=0.0)
    moments = load_evidence(tmp_path / "aim.evidence/base.safetensors")
    base = state(models.root / "base")
    name = "model.layers.1.mlp.down_proj.weight"
    strongest = int(moments.sums("input_moments", name)["sum_abs"].argmax())
    same = (out[name] == base[name]).all(dim=0).nonzero().flatten().tolist()
    assert same == [strongest]


def test_the_recipe_has_two_stages_and_keeps_what_holds_for_the_result(tmp_path, recipe, texts):
    document = recipe(name="mine", out_dtype="bfloat16", exclude=["model.norm.weight"])
    made = write_recipe(document, "aim", tmp_path / "aim.yml", data=texts)
    first, second = yaml.safe_load_all(made.text)
    assert (first["name"], first["merge_method"]) == ("merged", "ties")
    assert second["name"] == "mine" and second["out_dtype"] == "bfloat16"
    assert [entry["model"] for entry in second["models"]] == [document["base_model"], "merged"]
    assert second["models"][0]["evidence"] == "aim.evidence/base.safetensors"
    assert second["parameters"] == {"omega": 0.4}
    mergewise.merge(tmp_path / "aim.yml", tmp_path / "out")
    kinds = {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()}
    assert kinds == {torch.bfloat16}


def test_texts_of_each_expert_count_together(tmp_path, recipe, texts):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "1 + 1 = 2"}')
    made = write_recipe(recipe(), "aim", tmp_path / "aim.yml", each={"a": texts, "b": other})
    _, second = yaml.safe_load_all(made.text)
    joined = load_evidence(tmp_path / second["models"][0]["evidence"])
    assert sorted(part["data"].rsplit("/")[-1] for part in joined.record.parts) == [
        "generic.jsonl", "other.jsonl",
    ]  # fmt: skip


def test_evidence_that_there_is_is_used_without_data(recipe, models):
    made = guide(recipe(), "aim", {"base": models.base_a})
    assert str(models.base_a.path) in made.text


def test_an_average_of_models_without_a_base_is_refused(recipe, texts, tmp_path):
    document = recipe("linear", each={"weight": 0.5})
    document["models"].append({"model": document["base_model"], "parameters": {"weight": 0.1}})
    with pytest.raises(GuideError, match="task_arithmetic with `normalize: true`"):
        write_recipe(document, "aim", tmp_path / "aim.yml", data=texts)


def test_a_model_called_merged_does_not_hide_the_stage(tmp_path, recipe, texts, monkeypatch):
    document = recipe(experts="a")
    (tmp_path / "merged").symlink_to(document["models"][0]["model"])
    document["models"][0]["model"] = "merged"
    monkeypatch.chdir(tmp_path)
    made = write_recipe(document, "aim", "aim.yml", data=texts)
    first, second = yaml.safe_load_all(made.text)
    assert first["name"] == second["models"][1]["model"] == "merged_2"
