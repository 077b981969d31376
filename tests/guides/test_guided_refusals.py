"""What a guided merge refuses before any model is run, and evidence that it does not take again."""

import json
import shutil

import pytest
import yaml
from _guided_models import nudge, save
from small_language import byte_tokenizer, random_llama

import mergewise
from mergewise.errors import DataError, EvidenceError, GuideError, OutputError, RecipeError
from mergewise.evidence import Data
from mergewise.guides import collect_for, guide, write_recipe

TEXTS = ["a rose is a rose", "by any other name"]


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path.name


@pytest.fixture
def guided(tmp_path, recipe):
    """The path of a recipe with a guide; data lies beside it."""
    lines(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))

    def make(**call):
        call = {"name": "lewis", "importance": "wanda", "data": "a.jsonl", **call}
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe(guide=call)))
        return path

    return make


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no records"),
        ([{"txt": "one"}], "row 1 has no text"),
        ([{"text": "one"}, {"txt": "two"}], "row 2 has no text"),
        ([{"text": ""}, {"text": " \n"}], "all 2 texts are empty"),
    ],
)
def test_data_of_the_last_expert_is_looked_at_before_the_first_is_run(
    guided, tmp_path, records, words
):
    data = {"a": "a.jsonl", "b": lines(tmp_path / "b.jsonl", *records)}
    said = []
    with pytest.raises(DataError, match=words):
        mergewise.merge(guided(data=data), tmp_path / "out", told=said.append)
    assert said == [] and not list(tmp_path.glob("out*"))


def test_an_expert_without_a_tokenizer_is_named_before_the_first_is_run(recipe, models, tmp_path):
    shutil.copytree(models.root / "b", tmp_path / "silent")
    for file in (tmp_path / "silent").glob("tokenizer*"):
        file.unlink()
    asked = recipe()
    asked["models"][1]["model"] = str(tmp_path / "silent")
    said = []
    with pytest.raises(EvidenceError, match=r"silent: .* no tokenizer"):
        collect_for(asked, "lewis", TEXTS, tmp_path / "kept", told=said.append)
    assert said == []


def test_an_output_that_is_not_free_is_refused_before_the_guide_runs(guided, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    said = []
    with pytest.raises(OutputError, match=r"is not empty \(thesis.txt\)"):
        mergewise.merge(guided(), tmp_path / "out", told=said.append)
    assert said == [] and not (tmp_path / "out.evidence").exists()
    mergewise.merge(guided(), tmp_path / "out", told=said.append, overwrite=True)
    assert said and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"limit": "two"}, "limit: int expected, got 'two'"),
        ({"limit": 0}, "limit: 1 <= x expected, got 0"),
        ({"max_length": -3}, "max_length: 1 <= x expected"),
        ({"dtype": "float12"}, "dtype: one of bfloat16"),
        ({"offload": "maybe"}, "offload: bool expected"),
        ({"template": 3}, "template: str expected"),
    ],
)
def test_how_data_is_read_is_checked_at_the_guides_line(guided, tmp_path, call, words):
    said = []
    with pytest.raises(RecipeError, match=words):
        mergewise.merge(guided(**call), tmp_path / "out", told=said.append)
    assert said == []


def test_what_a_preset_sets_is_not_overruled_by_a_default_that_was_written(evidence, recipe):
    with pytest.raises(GuideError, match="preset reference sets propagation pruned, not dense"):
        guide(recipe(), "lewis", evidence, preset="reference", propagation="dense")
    with pytest.raises(GuideError, match="variant delta sets importance delta, not wanda"):
        guide(recipe(), "lewis", evidence, variant="delta", importance="wanda")


def test_evidence_of_other_options_or_another_tokenizer_is_collected_anew(recipe, tmp_path):
    root = tmp_path / "models"
    for name, seed in (("base", None), ("a", 1)):
        module = random_llama(0).module
        if seed:
            nudge(module, seed)
        save(module, root / name)
    asked = recipe(experts="a")
    asked["base_model"], asked["models"][0]["model"] = str(root / "base"), str(root / "a")
    lines(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))

    def collected(**given):
        said = []
        collect_for(
            asked, "lewis", Data(tmp_path / "a.jsonl", split="train"), tmp_path / "kept",
            reuse=True, told=said.append, **given,
        )  # fmt: skip
        return len(said)

    curvature = {"settings": {"variant": "curvature", "mean_density": 0.5}}
    assert collected(**curvature) == 1 and collected(**curvature) == 0
    assert collected(**curvature, dtype="float64") == 1  # and then not as it is stored
    assert collected(**curvature) == 1
    (root / "a" / "tokenizer.json").write_text((root / "a" / "tokenizer.json").read_text() + "\n")
    assert collected(**curvature) == 1
    mergewise.evidence.collect(
        "fisher", root / "a", Data(tmp_path / "a.jsonl", split="train"),
        tmp_path / "kept" / "a.safetensors", overwrite=True, options={"fisher": {"labels": "data"}},
    )  # fmt: skip
    assert collected(**curvature) == 1


def test_the_recipe_that_is_kept_says_where_its_paths_begin(models, recipe, tmp_path):
    for name in ("base", "a"):
        shutil.copytree(models.root / name, tmp_path / name)
    lines(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))
    asked = recipe(experts="a", guide={"name": "lewis", "data": "a.jsonl"})
    asked["base_model"], asked["models"][0]["model"] = "base", "a"
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(asked))
    mergewise.merge(tmp_path / "recipe.yml", tmp_path / "deep" / "out")
    kept = (tmp_path / "deep" / "out.evidence" / "recipe.yml").read_text()
    assert kept.startswith("# Relative paths: from ") and str(tmp_path) in kept.splitlines()[0]
    (tmp_path / "again.yml").write_text(kept)
    mergewise.merge(tmp_path / "again.yml", tmp_path / "again")
    files = [tmp_path / n / "model.safetensors" for n in ("deep/out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def foreign(tmp_path, models):
    """A third expert with more tokens in its tokenizer than it knows."""
    shutil.copytree(models.root / "b", tmp_path / "foreign")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


WORDS = r"row 2 has the token id 259, but .*foreign knows 259 tokens"


@pytest.mark.parametrize("name", ["lewis", "slta", "localize_and_stitch", "adapter_soup"])
def test_the_last_experts_tokenizer_is_looked_at_before_the_first_is_run(
    name, recipe, foreign, tmp_path
):
    methods = {"lewis": "ties", "localize_and_stitch": "localize_and_stitch"}
    asked = recipe(methods.get(name, "task_arithmetic"), each={})
    for one in asked["models"]:
        one["parameters"] = {} if name == "localize_and_stitch" else {"weight": 1.0}
    asked["models"].append({**asked["models"][0], "model": str(foreign)})
    said = []
    settings = {"lewis": {"mean_density": 0.5}, "adapter_soup": {"target": "a.txt"}}.get(name, {})
    with pytest.raises(DataError, match=WORDS):
        write_recipe(
            asked, name, tmp_path / "out.yml", data=["plain", "an <image> here"],
            settings=settings, told=said.append,
        )  # fmt: skip
    assert said == [] and not list(tmp_path.glob("out*"))


def test_tokens_that_no_text_has_are_no_harm(recipe, foreign, tmp_path):
    asked = recipe("task_arithmetic", each={"weight": 1.0})
    asked["models"].append({**asked["models"][0], "model": str(foreign)})
    write_recipe(asked, "slta", tmp_path / "out.yml", data=TEXTS)
    assert (tmp_path / "out.yml").is_file()
