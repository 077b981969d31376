"""`mergewise guide` and `mergewise guides`, from end to end."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from small_language import byte_tokenizer, random_llama

from mergewise.evidence import load_evidence
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

RECIPE = """\
# Two experts.
merge_method: ties
base_model: base
models:
  - model: maths
    parameters: {weight: 1, density: 0.5}
  - model: code
    parameters: {weight: 1}
parameters:
  density: 0.4
"""


@pytest.fixture(scope="session")
def speaking(tmp_path_factory):
    """base, maths and code with a tokenizer; not to be written to."""
    folder = tmp_path_factory.mktemp("speaking")
    draw = torch.Generator().manual_seed(3)
    for name in ("base", "maths", "code"):
        module = random_llama(0).module
        if name != "base":
            with torch.no_grad():
                for weight in module.parameters():
                    weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.05)
        module.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def ready(here, speaking):
    for name in ("base", "maths", "code"):
        (here / name).unlink(missing_ok=True)
        (here / name).symlink_to(speaking / name)
    (here / "recipe.yml").write_text(RECIPE)
    (here / "maths.txt").write_text("1 + 1 = 2\n%%\n2 + 2 = 4\n%%\n3 + 3 = 6")
    (here / "code.txt").write_text("def f(): return 1\n%%\nimport os")
    return here


DATA = (
    "--set",
    "importance=wanda",
    "--data",
    "maths=maths.txt",
    "--data",
    "code=code.txt",
    "--separator",
    "\\n%%\\n",
)


def test_from_data_to_a_recipe_that_merges_without_it(run, ready):
    done = run("guide", "lewis", "recipe.yml", "-o", "guided.yml", *DATA, "--limit", 2,
               "--plot", "heat.svg", "--set", "mean_density=0.45")  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, "guided.yml\n"), done.stderr
    assert "input_moments of base on code.txt" in done.stderr
    assert "density 0.5 of maths is replaced" in done.stderr
    assert "code: density" in done.stderr and "mean 0.45" in done.stderr
    kept = {path.stem for path in (ready / "guided.evidence").iterdir()}
    assert kept == {"maths", "code", "base.maths", "base.code"}
    part = load_evidence("guided.evidence/base.maths.safetensors").record.parts[0]
    assert part["data"] == "maths.txt" and part["records"] == 2
    text = (ready / "guided.yml").read_text()
    assert "mean_density 0.45" in text and text.count("sha256") == 4
    assert load_recipe("guided.yml").output.parameters == {}
    drawn = "".join(ElementTree.parse(ready / "heat.svg").getroot().itertext())
    for shown in ("model.layers.1", "self_attn.v_proj", "density: code", "change: maths"):
        assert shown in drawn
    for name in ("maths.txt", "code.txt", "recipe.yml"):
        (ready / name).unlink()
    shutil.rmtree(ready / "guided.evidence")
    assert run("merge", "guided.yml", "out", "-q").exit_code == 0
    densities = {
        tuple(t.values["density"]) for t in build_plan("guided.yml").output.tensors.values()
    }
    assert len(densities) > 8


def test_evidence_given_is_not_collected_again(run, ready):
    assert run("guide", "lewis", "recipe.yml", "-o", "one.yml", *DATA).exit_code == 0
    files = {
        name: ready / "one.evidence" / f"{name}.safetensors"
        for name in ("maths", "code", "base.maths", "base.code")
    }
    given = [arg for name, file in files.items()
             for arg in ("--evidence", f"{name.split('.')[0]}={file}")]  # fmt: skip
    done = run("guide", "lewis", "recipe.yml", "-o", "two.yml", *given, *DATA[:2])
    assert done.exit_code == 0, done.stderr
    assert not (ready / "two.evidence").exists()
    assert (ready / "two.yml").read_bytes() == (ready / "one.yml").read_bytes()
    some = [*given[:2], *given[4:6]]
    done = run("guide", "lewis", "recipe.yml", "-o", "three.yml", *some, *DATA[:2])
    assert done.exit_code == 1
    assert "lewis reads input_moments of code, and there is no evidence of it" in done.stderr
    assert "--data" in done.stderr and not (ready / "three.yml").exists()


def test_one_set_of_data_for_all(run, ready):
    done = run("guide", "lewis", "recipe.yml", "-o", "g.yml", "--data", "maths.txt", "--json",
               "--set", "importance=delta")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert {path.stem for path in (ready / "g.evidence").iterdir()} == {"maths", "code"}
    layers = [one["values"] for one in found["maps"] if one["what"] == "density"]
    assert [list(layer) for layer in layers] == [["model.layers.0", "model.layers.1"]] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "maths=maths.txt"], 1, "no data for code; give --data code=FILE"),
        (["--data", "maths.txt", "--data", "code.txt"], 2, "name experts: MODEL=D"),
        (["--data", "english=maths.txt"], 1, "called 'english'; its models: base, maths, code"),
        (["--data", "nowhere.txt"], 1, "nowhere.txt"),
        (["--data", "maths.txt", "--set", "density_min"], 2, "KEY=VALUE expected"),
        (["--data", "maths.txt", "--set", "dens=1"], 1, "lewis has no setting 'dens'"),
        (["--evidence", "maths"], 2, "MODEL=FILE expected"),
        (["--data", "maths.txt", "--plot", "no/such.svg"], 1, "a file in a folder that exists"),
    ],
)
def test_mistakes_are_named_before_anything_is_run(arguments, code, message, run, ready):
    done = run("guide", "lewis", "recipe.yml", "-o", "g.yml", *arguments)
    assert done.exit_code == code and message in done.stderr
    assert not (ready / "g.yml").exists() and not (ready / "g.evidence").exists()


def test_nothing_is_overwritten_unasked(run, ready):
    (ready / "g.yml").write_text("mine")
    done = run("guide", "lewis", "recipe.yml", "-o", "g.yml", *DATA)
    assert done.exit_code == 1 and "g.yml: exists already" in done.stderr
    (ready / "g.evidence").mkdir()
    (ready / "g.evidence/code.safetensors").write_text("mine")
    (ready / "g.yml").unlink()
    done = run("guide", "lewis", "recipe.yml", "-o", "g.yml", *DATA)
    assert done.exit_code == 1 and "code.safetensors: exists already" in done.stderr
    assert [path.name for path in (ready / "g.evidence").iterdir()] == ["code.safetensors"]
    assert run("guide", "lewis", "recipe.yml", "-o", "g.yml", *DATA, "--overwrite").exit_code == 0
    before = (ready / "recipe.yml").read_text()
    done = run("guide", "lewis", "recipe.yml", "-o", "recipe.yml", *DATA, "--overwrite")
    assert done.exit_code == 1 and (ready / "recipe.yml").read_text() == before


def test_a_guide_in_the_recipe_is_not_passed_over_in_silence(run, ready):
    (ready / "recipe.yml").write_text(RECIPE + "guide: {name: lewis, mean_density: 0.7}\n")
    result = run("guide", "lewis", "recipe.yml", "-o", "guided.yml", *DATA)
    assert result.exit_code == 0, result.stderr
    assert "recipe.yml: its own `guide` is not read here" in result.stderr
    assert load_recipe(ready / "guided.yml").output.guide is None


def test_models_beside_the_recipe_must_be_found_from_the_output(run, ready, monkeypatch):
    (ready / "elsewhere").mkdir()
    monkeypatch.chdir(ready / "elsewhere")
    done = run("guide", "lewis", "../recipe.yml", "-o", "g.yml", "--data", "../maths.txt")
    assert done.exit_code == 1 and "write the output into that folder" in done.stderr
    done = run("guide", "lewis", "../recipe.yml", "-o", "../g.yml", "--data", "../maths.txt")
    assert done.exit_code == 0, done.stderr
    assert build_plan("../g.yml").output.tensors


def test_a_number_may_be_the_text_that_a_setting_wants(run, ready):
    settings = ("--set", "points=0.5", "--set", "parameter=density", "--set", "other=1")
    done = run("guide", "layer_schedule", "recipe.yml", "-o", "g.yml", *settings)
    assert done.exit_code == 0, done.stderr
    text = (ready / "g.yml").read_text()
    assert "down_proj.weight, value: 0.5}" in text and "points 0.5, " in text


def test_guides_are_listed_and_explained(run):
    done = run("guides")
    assert "lewis" in done.stdout and "unlabelled" in done.stdout
    page = run("guides", "lewis").stdout
    assert "2503.03874" in page and "mean_density" in page and "fisher of experts" in page
    every = json.loads(run("guides", "--json").stdout)
    [one] = [guide for guide in every if guide["name"] == "lewis"]
    assert one["needs"] == {"experts": ["fisher"], "base": [], "data": False, "tasks": False}
    assert json.loads(run("guides", "lewis", "--json").stdout) == one
    done = run("guides", "luis")
    assert done.exit_code == 1 and "lewis" in done.stderr
