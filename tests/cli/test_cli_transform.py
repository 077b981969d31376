"""`mergewise transform` and `mergewise transforms`, from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small_models import load

from mergewise.checkpoint import open_checkpoint


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """``net_a``, ``net_b`` and ``net``, tiny ResNets, and ``images.npz``; read only."""
    from transformers import ResNetConfig, ResNetForImageClassification

    root = tmp_path_factory.mktemp("pictures")
    config = ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    for seed, name in enumerate(("net", "net_a", "net_b")):
        torch.manual_seed(seed)
        ResNetForImageClassification(config).save_pretrained(root / name)
    draw = np.random.default_rng(0)
    np.savez(
        root / "images.npz",
        x_train=draw.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8),
        y_train=draw.integers(0, 3, 12),
    )
    return root


@pytest.fixture
def ready(here, pictures):
    for path in pictures.iterdir():
        (here / path.name).symlink_to(path)
    return here


def test_batch_norms_from_a_file_of_images(run, ready):
    done = run("transform", "batch_norm", "net", "-o", "out", "--data", "images.npz",
               "--prepare", "mean=0.5", "--prepare", "std=0.5", "--limit", 10)  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, "out\n"), done.stderr
    assert "6 batch norms measured anew on 10 examples" in done.stderr
    assert "18 tensors changed" in done.stderr
    old, new = load(ready / "net"), load(ready / "out")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {n for n in old if "running" in n or "tracked" in n}


def test_repair_with_weights_and_json(run, ready):
    done = run("transform", "repair", "net", "-o", "out", "--data", "images.npz", "--json",
               "--model", "net_a", "--model", "b=net_b", "--weights", "0.25,0.75",
               "--set", "average=variance")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["out"] == "out" and len(found["measured"]["after"]) == 6
    assert all(abs(ratio - 1) < 1e-3 for ratio in found["measured"]["after"].values())
    record = json.loads((ready / "out/mergewise_provenance.json").read_text())
    assert record["weights"] == {"net_a": 0.25, "b": 0.75}
    assert record["settings"]["average"] == "variance"


def test_surgery_writes_a_file_for_each_task(run, ready):
    done = run("transform", "surgery", "net", "-o", "out", "--model", "a=net_a", "--model",
               "b=net_b", "--data", "a=images.npz", "--data", "b=images.npz",
               "--set", "steps=3", "--set", "rank=2")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert {p.name for p in (ready / "out").glob("surgery.*")} == {
        "surgery.a.safetensors", "surgery.b.safetensors"
    }  # fmt: skip
    assert open_checkpoint(ready / "out").warnings == ()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["batch_nrm", "net", "-o", "out"], 1, "did you mean batch_norm?"),
        (["batch_norm", "net", "-o", "out"], 1, "give --data FILE"),
        (["batch_norm", "net", "-o", ""], 2, "it is empty"),
        (["batch_norm", "nowhere", "-o", "out", "--data", "images.npz"], 1, "nowhere"),
        (["batch_norm", "net", "-o", "net_a", "--data", "images.npz"], 1, "is not empty"),
        (["batch_norm", "base", "-o", "out", "--data", "images.npz"], 1, "no batch norm"),
        (["batch_norm", "net", "-o", "out", "--set", "passes"], 2, "KEY=VALUE expected"),
        (["repair", "net", "-o", "out", "--weights", "a,b"], 2, "numbers expected"),
        (["repair", "net", "-o", "out", "--data", "images.npz"], 1, "--model LABEL=PATH"),
        (["repair", "net", "-o", "out", "--model", "net_a", "--model", "net_a"], 2, "two models"),
        (["surgery", "net", "-o", "out", "--model", "a=net_a", "--data", "b=images.npz"], 1,
         "data for 'b'; expected: a"),
        (["batch_norm", "net", "-o", "out", "--data", "images.npz", "--data", "images.npz"], 2,
         "is given twice"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, code, message, run, ready):
    done = run("transform", *arguments)
    assert done.exit_code == code and message in done.stderr, done.stderr
    assert not (ready / "out").exists()


def test_interrupted_it_leaves_nothing(ready):
    slow = (
        "import time, mergewise.transforms.batch_norm as b\n"
        "real = b.measure\n"
        "def slow(*a, **k):\n"
        "    print('at work', flush=True); time.sleep(60)\n"
        "b.measure = slow\n"
        "from mergewise.cli import main\n"
        "main()\n"
    )
    arguments = ["transform", "batch_norm", "net", "-o", "out", "--data", "images.npz"]
    child = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ready, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "at work\n"
    assert (ready / "out/.mergewise").is_dir()
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted; nothing was written to out" in said
    assert not (ready / "out").exists()


def test_transforms_are_listed_and_explained(run):
    done = run("transforms")
    assert all(name in done.stdout for name in ("batch_norm", "repair", "surgery"))
    page = run("transforms", "repair").stdout
    assert "2211.08403" in page and "sigma*" in page and "closed_form" in page
    listed = json.loads(run("transforms", "--json").stdout)
    one = json.loads(run("transforms", "surgery", "--json").stdout)
    assert one in listed and one["settings"]["rank"]["default"] == 16
    assert "RepresentationSurgery" in one["variant"]
    done = run("transforms", "surgry")
    assert done.exit_code == 1 and "did you mean surgery?" in done.stderr


def test_listing_needs_no_torch(here):
    code = (
        "import sys\n"
        "from mergewise.cli import cli\n"
        "try: cli(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    for arguments in (["transforms"], ["transforms", "repair"], ["transform", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
