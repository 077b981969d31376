"""`mergewise methods` and `mergewise inspect`."""

import json
import struct

from mergewise.methods import all_methods


def test_all_methods_are_listed(run):
    result = run("methods")
    names = [line.split()[0] for line in result.stdout.splitlines()[1:] if line[0] != " "]
    assert names == sorted(all_methods())


def test_one_method_is_explained(run):
    text = run("methods", "ties").stdout
    for part in ("arXiv 2306.01708", "sum_i w_i m_i", "0 <= x <= 1", "required",
                 "a base model and 1 or more others", "merge_method: ties"):  # fmt: skip
        assert part in text
    assert "* not in mergekit" in text


def test_the_example_can_be_saved_and_checked(run, here):
    example = json.loads(run("methods", "della", "--json").stdout)["example"]
    (here / "example.yml").write_text(example)
    assert run("check", "example.yml").exit_code == 0


def test_an_unknown_method_exits_2_with_a_suggestion(run):
    result = run("methods", "tis")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean ties" in result.stderr
    for name, meant in (("TIES", "ties"), ("tsv-m", "tsv_m")):
        assert f"did you mean {meant}?" in run("methods", name).stderr


def test_methods_as_json(run):
    methods = {m["name"]: m for m in json.loads(run("methods", "--json").stdout)}
    assert methods.keys() == all_methods().keys()
    assert methods["linear"]["parameters"]["weight"]["required"]
    assert methods["dare_ties"]["random"]


def test_inspect_shows_architecture_and_tensors(run):
    result = run("inspect", "base")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "architecture LlamaForCausalLM (llama)" in rows
    assert "parameters 7,152" in rows
    assert "model.layers.{0-2}.self_attn.q_proj.weight 3 BF16 [16, 16] 768" in rows


def test_inspect_lists_every_tensor(run):
    text = run("inspect", "base", "--tensors").stdout
    assert "model.layers.2.mlp.up_proj.weight" in text
    summary = json.loads(run("inspect", "base", "--json").stdout)
    assert len(summary["tensors"]) == 30 and summary["parameters"] == 7152


def test_inspect_of_nothing_fails_with_a_reason(run):
    result = run("inspect", "nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nowhere: no such file or folder")


def test_hostile_names_are_shown_harmless(run, here):
    name = "evil\x1b[2J[bold]\u202e.weight"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({name: entry}).encode()
    (here / "evil.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    result = run("inspect", "evil.safetensors")
    assert result.exit_code == 0
    assert r"evil\x1b[2J[bold]\u202e.weight" in result.stdout
    assert "\x1b" not in result.output
