"""`mergewise collect` and `mergewise evidence`, from end to end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_language import byte_tokenizer, random_llama

from mergewise.evidence import load_evidence

TEXTS = ["a rose is a rose", "by any other name", "would smell as sweet", "and so on"]


@pytest.fixture(scope="session")
def speaking(tmp_path_factory):
    """Two checkpoints with a tokenizer, not to be written to."""
    folder = tmp_path_factory.mktemp("speaking")
    for seed in range(2):
        random_llama(seed).module.save_pretrained(folder / f"m{seed}")
        byte_tokenizer().save_pretrained(folder / f"m{seed}")
    return folder


@pytest.fixture
def ready(here, speaking):
    (here / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    for model in speaking.iterdir():
        (here / model.name).symlink_to(model)
    return here


def test_collect_show_merge(run, ready):
    for k in (1, 2):
        done = run("collect", "input_moments,input_gram", "m0", "--data", "texts.jsonl",
                   "-o", f"{k}.evd", "--share", f"{k}/2", "--batch-size", 1)  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert done.stdout == f"{k}.evd\n"
        assert "2 records" in done.stderr and "not described: model.embed_tokens" in done.stderr
    merged = run("evidence", "merge", "1.evd", "2.evd", "-o", "all.evd")
    assert (merged.exit_code, merged.stdout) == (0, "all.evd\n")
    done = run("collect", "input_moments", "m0", "--data", "texts.jsonl", "-o", "whole.evd")
    whole, total = load_evidence("whole.evd"), load_evidence("all.evd")
    for tensor in whole.tensors("input_moments"):
        assert whole.counts("input_moments", tensor) == total.counts("input_moments", tensor)
    page = run("evidence", "show", "all.evd").stdout
    assert "texts.jsonl" in page and "1/2" in page and "input_gram" in page
    assert (
        "model.layers.0.mlp.up_proj.weight"
        in run("evidence", "show", "all.evd", "--tensors").stdout
    )
    value = json.loads(run("evidence", "show", "all.evd", "--json").stdout)
    tensors = value["tensors"]["input_gram"]
    assert tensors["model.layers.0.mlp.down_proj.weight"]["sums"] == {"gram": [48, 48]}
    assert [part["share"] for part in value["parts"]] == [[0, 2], [1, 2]]


def test_records_of_a_text_file(run, ready):
    (ready / "texts.txt").write_text("\n%%\n".join(TEXTS))
    asked = ("collect", "input_moments", "m0", "--data", "texts.txt", "--limit", "3")
    done = run(*asked, "--separator", r"\n%%\n", "-o", "some.evd")
    assert done.exit_code == 0 and "3 records" in done.stderr
    assert "1 record " in run(*asked, "-o", "one.evd").stderr


def test_options_offload_and_a_second_model(run, ready):
    done = run(
        "collect", "cross_covariance", "m0", "--with", "m1", "--data", "texts.jsonl",
        "-o", "x.evd", "--offload", "--set", "cross_covariance.within=true",
        "--set", "cross_covariance.max_channels=32", "--rows", ":3", "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    value = json.loads(done.stdout)
    sums = value["tensors"]["cross_covariance"]["model.layers.0.self_attn.q_proj.weight"]["sums"]
    assert sums["product"] == sums["gram_a"] == [32, 32]
    assert value["statistics"]["cross_covariance"]["other"]["name"] == "m1"
    assert value["parts"][0]["records"] == 3


def test_gradient_statistics(run, ready):
    done = run("collect", "fisher", "m0", "--data", "texts.jsonl", "-o", "x.evd", "--limit", 2)
    assert done.exit_code == 0, done.stderr
    found = load_evidence("x.evd")
    assert found.tensors("fisher") and found.record.parts[0]["records"] == 2


def test_list(run, ready):
    page = run("collect", "--list").stdout
    assert "input_moments" in page and "router_usage" in page and "unlabelled" in page
    assert "sum_t x_t x_t^T" in run("collect", "--list", "input_gram").stdout
    value = {s["name"]: s for s in json.loads(run("collect", "--list", "--json").stdout)}
    assert value["cross_covariance"]["two_models"] and value["fisher"]["need"] == "gradients"
    assert set(value["input_moments"]["sums"]) == {"sum", "sum_abs", "sum_squares"}
    assert run("collect", "--list", "input_gran").exit_code == 1


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["input_gram"], 2, "CHECKPOINT and --data and -o missing"),
    (["input_gran", "m0", "--data", "texts.jsonl", "-o", "x"], 1, "did you mean input_gram"),
    (["input_gram", "m9", "--data", "texts.jsonl", "-o", "x"], 1, "m9"),
    (["input_gram", "m0", "--data", "t.jsonl", "-o", "x"], 1, "t.jsonl"),
    (["input_gram", "expert_a", "--data", "t.xyz", "-o", "x"], 1, "t.xyz"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "x", "--share", "5/4"], 2, "1/4"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "x", "--rows", "3:1"], 2, "0:500"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "x", "--set", "a=1"], 2, "STATISTIC.OPT"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "x", "--with", "m1"], 1, "leave out"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "ties.yml"], 1, "--overwrite"),
    (["input_gram", "m0", "--data", "texts.jsonl", "-o", "x", "--template", "{y}"], 1, "'y'"),
])  # fmt: skip
def test_mistakes(run, ready, arguments, code, words):
    done = run("collect", *arguments)
    assert done.exit_code == code and words in done.stderr
    assert not (ready / "x").exists()


def test_a_file_that_is_no_evidence(run, ready):
    done = run("evidence", "show", "m0/model.safetensors")
    assert done.exit_code == 1 and "not an evidence file" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_leaves_no_file(ready):
    lines = "".join(json.dumps({"text": "a rose is a rose " * 20}) + "\n" for _ in range(20_000))
    (ready / "many.jsonl").write_text(lines)
    (ready / "out").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "mergewise", "collect", "input_gram", "m0", "--data", "many.jsonl",
         "-o", "out/x.evd", "--memory", "1kB"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if "forward:" in line:
            break
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(60) == 130
    assert "nothing was written" in rest
    assert not list((ready / "out").iterdir())
