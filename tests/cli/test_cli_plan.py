"""`mergewise plan`: from headers, in words and as JSON."""

import json
import shutil

import pytest
import yaml
from small_evidence import base_evidence_for, evidence_for, write_means
from small_models import load

from mergewise.methods import all_methods, get_method

Q1 = "model.layers.1.self_attn.q_proj.weight"


def test_the_page_names_models_tensors_and_costs(run):
    result = run("plan", "ties.yml")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert rows[0] == "ties → LlamaForCausalLM, 7,152 parameters"
    assert "output 30 tensors in 3 layers" in rows
    assert "base base BF16 7,152" in rows
    assert "expert_a expert BF16 7,152 0.7 0.5" in rows
    assert "expert_b expert BF16 7,152 0.3 0.2, 0.4, 0.6" in rows
    up = "model.layers.{0-2}.mlp.up_proj.weight 3 merge BF16 [24, 16]"
    assert f"{up} 0.5; 0.2, 0.4, 0.6" in rows
    assert "reads 42.9 kB" in rows
    assert any(r.startswith("writes 14.3 kB; ") and r.endswith(" free here") for r in rows)
    assert any(r.startswith("memory about ") for r in rows)


def test_every_tensor_on_its_own_row(run):
    assert Q1 not in run("plan", "ties.yml").stdout
    assert Q1 in run("plan", "ties.yml", "--tensors").stdout


def test_json_has_every_value_and_its_origin(run):
    plan = json.loads(run("plan", "ties.yml", "--json").stdout)
    assert plan["output"]["parameters"] == 7152
    assert plan["bytes_read"] == 3 * plan["bytes_written"]
    assert plan["peak_memory"]["1"] > 0 and plan["free_disk"]["bytes"] > 0
    (stage,) = plan["stages"]
    assert [m["role"] for m in stage["models"]] == ["base", "expert", "expert"]
    tensor = next(t for t in stage["tensors"] if t["name"] == Q1)
    assert (tensor["fate"], tensor["method"], tensor["dtype"]) == ("merge", "ties", "BF16")
    assert [s["model"] for s in tensor["sources"]] == ["base", "expert_a", "expert_b"]
    first, second = tensor["parameters"]["density"]
    assert first["value"] == 0.5 and first["origin"].startswith("ties.yml:5:40 ")
    assert second["value"] == pytest.approx(0.4)
    assert "gradient [0.2, 0.4, 0.6] at t=0.50" in second["origin"]
    assert tensor["parameters"]["lambda"] == {"value": 1.0, "origin": "default of ties"}


def test_each_stage_has_its_own_seed(run, here):
    random = (here / "ties.yml").read_text().replace("ties", "dare_ties")
    last = "merge_method: linear\nmodels: [{model: one, parameters: {weight: 1}}]\n"
    (here / "two.yml").write_text(f"name: one\nseed: 7\n{random}---\n{last}")
    rows = [" ".join(line.split()) for line in run("plan", "two.yml").stdout.splitlines()]
    assert "seed 7 in one, 0 in stage 2" in rows
    stages = json.loads(run("plan", "two.yml", "--json").stdout)["stages"]
    assert [stage["seed"] for stage in stages] == [7, 0]


def test_explain_shows_inputs_formula_and_origins(run):
    result = run("plan", "ties.yml", "--explain", "1.self_attn.q_proj")
    assert result.exit_code == 0
    for text in (Q1, "merged by ties", "expert_b/model.safetensors", "ties.yml:5:40", "t=0.50",
                 "rounded to BF16", "default of ties", "sum_i w_i m_i d_i"):  # fmt: skip
        assert text in result.stdout


def test_explain_takes_patterns(run):
    result = run("plan", "ties.yml", "--explain", "*.q_proj.*", "--json")
    assert [t["name"] for t in json.loads(result.stdout)] == [
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)
    ]


def test_explain_refuses_what_is_ambiguous_or_absent(run):
    many = run("plan", "ties.yml", "--explain", "q_proj")
    assert many.exit_code == 2
    assert "3 tensors have 'q_proj' in their names" in many.stderr
    assert "'*q_proj*' for all" in many.stderr
    none = run("plan", "ties.yml", "--explain", "model.norm.wieght")
    assert none.exit_code == 2
    assert "did you mean model.norm.weight" in none.stderr


def test_overrides_change_the_plan_and_say_so(run):
    result = run(
        "plan", "ties.yml", "--set", "parameters.lambda=0.5", "--explain", "lm_head.weight"
    )
    rows = [line.split() for line in result.stdout.splitlines()]
    row = next(row for row in rows if row[:1] == ["lambda"])
    assert row[1] == "0.5" and "--set parameters.lambda=0.5:" in " ".join(row)


def test_a_missing_model_is_an_error_at_its_place(run, here):
    (here / "expert_b").unlink()
    result = run("plan", "ties.yml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "ties.yml:6:12: expert_b: no such file or folder" in result.stderr
    assert "error: the recipe cannot be run: 1 error" in result.stderr


def test_all_mistakes_of_the_document_come_first(run, here):
    (here / "wrong.yml").write_text("merge_method: ties\nbase_modle: base\nmodels: []\n")
    result = run("plan", "wrong.yml")
    assert result.exit_code == 2
    assert result.stderr.count("wrong.yml:") >= 2


def test_excluded_tensors_and_those_of_some_models_are_listed(run, here):
    from safetensors.torch import load_file, save_file

    tensors = load_file(here / "expert_b/model.safetensors")
    (here / "expert_b").unlink()
    shutil.copytree(here / "expert_a", here / "expert_b")
    del tensors["model.norm.weight"]
    save_file(tensors, here / "expert_b/model.safetensors")
    recipe = (here / "ties.yml").read_text()
    (here / "part.yml").write_text(recipe + "exclude: [lm_head.*]\nmissing: available\n")
    result = run("plan", "part.yml")
    text = " ".join(result.stdout.split())
    assert "Copied lm_head.weight excluded by the recipe" in text
    assert "Merged of fewer models model.norm.weight not in expert_b" in text
    plan = json.loads(run("plan", "part.yml", "--json").stdout)
    assert plan["stages"][0]["only_some_models_have"] == {"model.norm.weight": ["expert_b"]}


def test_stages_are_shown_one_after_the_other(run, here):
    first = "name: soup\nmerge_method: linear\nparameters: {weight: 1}\n"
    models = "models:\n  - model: expert_a\n  - model: expert_b\n"
    second = (
        "merge_method: slerp\nbase_model: base\nmodels: [{model: soup}]\nparameters: {t: 0.5}\n"
    )
    (here / "two.yml").write_text(f"{first}{models}---\n{second}")
    result = run("plan", "two.yml")
    assert result.exit_code == 0
    assert "linear, then slerp" in result.stdout
    assert "soup: linear" in result.stdout
    explained = run("plan", "two.yml", "--explain", "lm_head.weight").stdout
    assert "lm_head.weight (soup)" in explained and "made by that stage" in explained


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_methods_example_can_be_planned(run, here, name):
    method = all_methods()[name]
    (here / "example.yml").write_text(method.example)
    models = [m for part in yaml.safe_load_all(method.example) for m in part.get("models", [])]
    for model in (model for model in models if "evidence" in model):
        state = load(here / model["model"])
        means = base_evidence_for(method, state) if model["model"] == "base" else None
        [means] = [means] if means else evidence_for(method, [state])
        files = model["evidence"] if isinstance(model["evidence"], list) else [model["evidence"]]
        for i, file in enumerate(files):
            part = {name: m for j, (name, m) in enumerate(means.items()) if j % len(files) == i}
            write_means(here / file, method, part)
    assert run("plan", "example.yml").exit_code == 0
    assert run("plan", "example.yml", "--json").exit_code == 0


def test_evidence_is_shown(run, here):
    method = get_method("regmean")
    models = []
    for name in ("expert_a", "expert_b"):
        [means] = evidence_for(method, [load(here / name)])
        write_means(here / f"{name}.gram", method, means)
        models.append({"model": name, "evidence": f"{name}.gram"})
    (here / "gram.yml").write_text(yaml.safe_dump({"merge_method": "regmean", "models": models}))
    rows = [" ".join(line.split()) for line in run("plan", "gram.yml").stdout.splitlines()]
    assert "expert_a expert_a.gram input_gram 23 of 30" in rows
    (stage,) = json.loads(run("plan", "gram.yml", "--json").stdout)["stages"]
    assert stage["evidence"][1] == {"model": "expert_b", "file": "expert_b.gram"}
    tensor = next(t for t in stage["tensors"] if t["name"] == Q1)
    assert tensor["statistics"][0]["sum"] == f"{Q1}::input_gram.gram"
    page = run("plan", "gram.yml", "--explain", Q1).stdout
    assert f"{Q1}::input_gram.gram" in page and "expert_b.gram" in page
