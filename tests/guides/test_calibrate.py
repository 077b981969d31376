"""Calibrate: any method that reads evidence, from models and data in one step."""

import json

import pytest
import yaml
from click.testing import CliRunner

import mergewise
from mergewise.cli import cli
from mergewise.errors import EvidenceError, GuideError, RecipeError
from mergewise.evidence import load_evidence
from mergewise.guides import guide, write_recipe
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

TEXTS = {"a": ["a rose is a rose", "by any other name"], "b": ["1 + 1 = 2", "2 + 2 = 4"]}


@pytest.fixture
def data(tmp_path):
    """A file of texts for each expert."""
    for name, texts in TEXTS.items():
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return {name: tmp_path / f"{name}.jsonl" for name in TEXTS}


def plain(recipe, method, **parts):
    """A recipe for a method without any evidence."""
    document = recipe(method, each={}, **parts)
    if method in ("fisher", "regmean"):
        del document["base_model"]
    for model in document["models"]:
        model.pop("parameters")
    return document


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_recipe_that_reads_evidence_is_made_ready_to_merge(tmp_path, recipe, data, method):
    document = plain(recipe, method)
    with pytest.raises(RecipeError, match="add `evidence"):
        build_plan(load_recipe(document))
    made = write_recipe(document, "calibrate", tmp_path / "out.yml", each=data)
    mergewise.merge(tmp_path / "out.yml", tmp_path / "merged")
    for name in TEXTS:
        own = load_evidence(tmp_path / f"out.evidence/{name}.safetensors")
        assert own.statistics == ("fisher" if method == "fisher" else "input_gram",)
    described = [t for t in build_plan(made.recipe).output.tensors.values() if t.statistics]
    assert described and (tmp_path / "merged/model.safetensors").is_file()
    assert "parameters" not in yaml.safe_load(made.text)


def test_only_what_the_parameters_ask_for_is_collected(tmp_path, recipe, data):
    each = {"weight": 0.5, "density": 0.5}
    for score, statistic in (("activation", "input_moments"), ("fisher", "fisher")):
        document = recipe("ties", each=each, parameters={"score": score})
        made = write_recipe(document, "calibrate", tmp_path / f"{score}.yml", each=data)
        plan = build_plan(made.recipe)
        assert {name for file in plan.evidence.values() for name in file.statistics} == {statistic}
    with pytest.raises(GuideError, match="reads no evidence with these parameters"):
        write_recipe(recipe("ties", each=each), "calibrate", tmp_path / "x.yml", each=data)
    with pytest.raises(GuideError, match=r"reads no evidence; methods that do: .*fisher"):
        guide(recipe("task_arithmetic", each={"weight": 1}), "calibrate")


def test_options_of_the_statistics_reach_them(tmp_path, recipe, data):
    settings = {"collect": "fisher.labels=data, fisher.samples=1"}
    write_recipe(
        plain(recipe, "fisher"), "calibrate", tmp_path / "x.yml", each=data, settings=settings
    )
    own = load_evidence(tmp_path / "x.evidence/a.safetensors")
    assert own.record.statistics["fisher"].options["labels"] == "data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("labels=data", "STATISTIC.OPTION=VALUE expected"),
        ("fisher.labels=dta", "one of"),
        ("fisher.lables=data", "did you mean labels"),
        ("input_gram.max_channels=4", "input_gram.* not collected"),
    ],
)
def test_options_are_checked_before_any_work(tmp_path, recipe, data, options, words):
    with pytest.raises((GuideError, EvidenceError), match=words):
        write_recipe(
            plain(recipe, "fisher"), "calibrate", tmp_path / "x.yml", each=data,
            settings={"collect": options},
        )  # fmt: skip
    assert not list(tmp_path.glob("x*"))


def test_evidence_that_there_is_already_is_used(tmp_path, recipe, data, models):
    document = recipe(
        "ties", each={"weight": 1, "density": 0.5}, parameters={"score": "activation"}
    )
    made = guide(document, "calibrate", {"a": models.a, "b": models.b})
    build_plan(made.recipe)
    assert str(models.a.path) in made.text
    with pytest.raises(EvidenceError, match=r"calibrate reads input_moments of .*b"):
        guide(document, "calibrate", {"a": models.a})


def test_evidence_of_the_recipe_is_replaced_and_told(tmp_path, recipe, data, models):
    document = plain(recipe, "fisher")
    document["models"][0]["evidence"] = str(models.a.path)
    made = write_recipe(document, "calibrate", tmp_path / "x.yml", each=data)
    assert str(models.a.path) not in made.text
    assert any("is replaced" in note for note in made.notes)


def test_the_base_is_described_too_where_the_method_reads_it(tmp_path, recipe, data):
    document = plain(recipe, "gradient_matching")
    made = write_recipe(document, "calibrate", tmp_path / "x.yml", each=data)
    mergewise.merge(tmp_path / "x.yml", tmp_path / "merged")
    entries = yaml.safe_load(made.text)["models"]
    assert [entry["model"].rsplit("/")[-1] for entry in entries] == ["a", "b", "base"]
    base = load_evidence(tmp_path / entries[2]["evidence"])
    assert len(base.record.parts) == 2  # the texts of both experts
    own = [load_evidence(tmp_path / entry["evidence"]) for entry in entries[:2]]
    assert all(len(one.record.parts) == 1 for one in own)


def test_a_guide_key_merges_in_one_call(tmp_path, recipe, data):
    document = plain(
        recipe, "fisher", guide={"name": "calibrate", "data": {"a": "a.jsonl", "b": "b.jsonl"}}
    )
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(document))
    mergewise.merge(tmp_path / "recipe.yml", tmp_path / "one")
    write_recipe(plain(recipe, "fisher"), "calibrate", tmp_path / "x.yml", each=data)
    mergewise.merge(tmp_path / "x.yml", tmp_path / "two")
    one, two = (tmp_path / n / "model.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_from_the_command_line(tmp_path, recipe, data):
    (tmp_path / "fisher.yml").write_text(yaml.safe_dump(plain(recipe, "fisher")))
    out = tmp_path / "ready.yml"
    args = ["guide", "calibrate", str(tmp_path / "fisher.yml"), "-o", str(out)]
    args += [f"--data=a={data['a']}", f"--data=b={data['b']}", "--set", "collect=fisher.samples=2"]
    result = CliRunner().invoke(cli, args)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out)), result.stderr
    assert build_plan(load_recipe(out)).evidence
