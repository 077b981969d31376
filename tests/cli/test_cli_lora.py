"""`mergewise lora`, and BASE+ADAPTER in other commands."""

import json
import re

import pytest
from small_adapters import lora
from small_models import load

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapters(here):
    for name, seed in (("one", 1), ("two", 2)):
        lora(here / name, load(here / "base"), [Q], seed=seed)
    return here


def test_extract_merge_and_use(run, adapters):
    done = run("lora", "extract", "expert_a", "base", "-o", "found", "--rank", "4")
    assert done.exit_code == 0, done.stderr
    assert f"{Q}.weight" in done.stdout and "%" in done.stdout.splitlines()[-1]
    assert "base+found" in done.stderr
    done = run("lora", "merge", "one", "two", "--weights", "0.5,0.5", "-o", "both", "--json")
    assert json.loads(done.stdout)["layers"][0]["rank"] == 6
    done = run("lora", "merge", "one", "two", "--method", "ties", "--set", "density=0.5",
               "--energy", "0.9", "-o", "ties")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (adapters / "r.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - {model: base+both, parameters: {weight: 1}}\n"
        "  - {model: base+found, parameters: {weight: 1}}\n"
    )
    assert run("plan", "r.yml").exit_code == 0
    assert run("merge", "r.yml", "merged", "--device", "cpu").exit_code == 0
    assert (adapters / "merged" / "config.json").is_file()


def test_units_and_overlap(run, adapters):
    done = run("lora", "merge", "one", "two", "--space", "units", "--rank", "4", "-o", "lego")
    assert done.exit_code == 0, done.stderr
    found = json.loads(run("lora", "overlap", "one", "two", "one", "--json").stdout)
    same = next(pair for pair in found if (pair["first"], pair["second"]) == (0, 2))
    assert 0.5 < same["inputs"] <= 1 and same["module"] == Q
    shown = run("lora", "overlap", "one", "two").stdout
    assert "one, two" in shown and f"{found[0]['inputs']:.3f}" in shown
    assert "two or more" in run("lora", "overlap", "one").stderr


def test_overlap_leaves_out_whole_tensors_and_says_so(run, adapters):
    base = load(adapters / "base")
    norm = {"model.norm.weight": base["model.norm.weight"] + 1}
    lora(adapters / "normed", base, [Q], seed=1, whole=norm)
    done = run("lora", "overlap", "normed", "two", "--json")
    assert json.loads(done.stdout) == json.loads(
        run("lora", "overlap", "one", "two", "--json").stdout
    )
    assert "normed: it also holds 1 whole tensor" in done.stderr
    assert "model.norm.weight" in done.stderr
    assert run("lora", "merge", "normed", "two", "-o", "out").exit_code != 0


def test_inspect_shows_a_base_with_an_adapter(run, adapters):
    shown = json.loads(run("inspect", "base+one", "--json").stdout)
    assert "adapter_model.safetensors" in shown["files"]
    plain = json.loads(run("inspect", "base", "--json").stdout)
    assert shown["parameters"] == plain["parameters"]


def test_an_adapter_alone_is_refused(run, adapters):
    assert "name it with its base" in run("inspect", "one").stderr


def test_mistakes_are_told(run, adapters):
    assert run("lora", "extract", "expert_a", "base", "-o", "x").exit_code == 1
    assert run("lora", "merge", "one", "two", "--weights", "a,b", "-o", "x").exit_code == 2
    assert run("lora", "merge", "one", "two", "--set", "density", "-o", "x").exit_code == 2
    assert run("lora", "merge", "one", "absent", "-o", "x").exit_code == 1
    assert not (adapters / "x").exists()


def test_merging_shows_how_far_it_is(run, adapters, monkeypatch):
    monkeypatch.setattr("mergewise.cli._progress.EVERY", 0.0)
    for name in ("one", "two"):
        lora(adapters / name, load(adapters / "base"), [Q, Q.replace("q_proj", "v_proj")])
    shown = run("lora", "merge", "one", "two", "-o", "both")
    assert shown.exit_code == 0 and re.search(r"1 of \d+ weights", shown.stderr)
    quiet = run("lora", "merge", "one", "two", "-o", "both", "--overwrite", "-q")
    assert "weights" not in quiet.stderr


def test_a_recipe_makes_an_adapter(run, adapters):
    models = "".join(
        f"  - model: base+{name}\n    parameters: {{weight: 0.5}}\n" for name in ("one", "two")
    )
    (adapters / "r.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: base\nmodels:\n{models}form: adapter\n"
    )
    assert "an adapter" in run("plan", "r.yml").stdout
    done = run("merge", "r.yml", "made")
    assert done.exit_code == 0 and f"{Q}.weight" in done.stdout
    again = run("merge", "r.yml", "made", "--overwrite", "--json")
    assert json.loads(again.stdout)["adapter"]["error"] < 1e-5
    assert run("plan", "r.yml", "--set", "form.rank=0").exit_code == 2
