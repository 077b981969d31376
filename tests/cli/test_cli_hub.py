"""Commands with names of the Hub in place of paths."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import TOKEN
from small_models import load

RECIPE = """\
merge_method: linear
models:
  - {model: org/expert_a, parameters: {weight: 0.5}}
  - {model: org/expert_b@main, parameters: {weight: 0.5}}
"""


@pytest.fixture
def online(hub, tiny_models, here, monkeypatch):
    for name in ("base", "expert_a", "expert_b"):
        hub.add(f"org/{name}", tiny_models / name)
    (here / "hub.yml").write_text(RECIPE)
    return hub


def test_plan_and_check_download_no_weights(online, run):
    assert run("check", "hub.yml").exit_code == 0
    assert not online.requests
    assert "org/expert_a" in run("plan", "hub.yml").stdout
    assert not list(online.cache.rglob("*.safetensors"))


def test_merge_says_what_it_downloads(online, run, here):
    done = run("merge", "hub.yml", "out", "--push", "me/merged")
    assert done.exit_code == 1
    assert "no token; log in first" in done.stderr  # seen before any work
    assert not (here / "out").exists()
    done = run("merge", "hub.yml", "out")
    assert (done.exit_code, done.stdout) == (0, "out\n")
    assert "from the Hub into its cache" in done.stderr


def test_streamed(online, run, here):
    done = run("merge", "hub.yml", "out", "--stream-inputs", "--json")
    assert done.exit_code == 0
    assert "of inputs, at most" in done.stderr
    assert not list(online.cache.rglob("*.safetensors"))
    assert load(here / "out")


def test_push(online, run, here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = run("merge", "hub.yml", "out", "--push", "me/merged", "--private", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["pushed"]
    pushed = online.models["me/merged"].commits[told["commit"]]
    assert told["model"] == "me/merged"
    assert pushed == {p.name: p.read_bytes() for p in (here / "out").iterdir()}
    assert [made["visibility"] for made in online.created] == ["private"]
    assert b"base_model:\n- org/expert_a\n- org/expert_b\n" in pushed["README.md"]


@pytest.mark.parametrize("status", [403, 500])
def test_a_push_that_fails_leaves_the_result(online, run, here, monkeypatch, status):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    online.api = lambda handler: (
        handler.command == "POST" and (handler.error(status, "No", "quota") or True)
    )
    done = run("merge", "hub.yml", "out", "--push", "me/merged")
    assert done.exit_code == 1
    assert "hf upload me/merged out" in done.stderr
    assert TOKEN not in done.stderr
    assert (here / "out/config.json").exists()


def test_push_is_told_how(online, run):
    assert run("merge", "hub.yml", "out", "--private").exit_code == 2
    done = run("merge", "hub.yml", "out", "--push", "me")
    assert "a name such as org/name expected" in done.stderr
    assert not [line for line in online.requests if line.startswith("POST")]


def test_inspect_and_lora(online, run, here):
    assert "org/base@" in run("inspect", "org/base").stdout
    done = run("lora", "extract", "org/expert_a", "org/base", "-o", "lora", "--rank", "2")
    assert done.exit_code == 0, done.stderr
    assert (here / "lora/adapter_model.safetensors").exists()
    settings = json.loads((here / "lora/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/base"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_in_a_download(online, here):
    began = here / "began"
    online.pause = lambda path, at: path.endswith(".safetensors") and wait(began)
    online.large = 1 << 40  # whole in one piece, from this host
    environment = {**os.environ, "HF_ENDPOINT": online.url, "HF_HUB_CACHE": str(online.cache),
                   "HF_HUB_OFFLINE": "0"}  # fmt: skip
    command = [sys.executable, "-m", "mergewise", "merge", "hub.yml", "out"]
    child = subprocess.Popen(
        command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not began.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert not (here / "out").exists()


def wait(began: Path) -> None:
    """The first answer is a header's; the next, a file's, takes long."""
    if began.with_suffix(".header").exists():
        began.touch()
        time.sleep(1)
    began.with_suffix(".header").touch()


def test_models_that_are_run_are_downloaded(online, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "real"
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    commit = online.add("org/real", folder)
    from mergewise.evidence import open_model

    model = open_model("org/real@main")
    assert model.folder.name == commit
    assert (model.folder / "model.safetensors").exists()
    assert model.fingerprint == open_model(folder).fingerprint
