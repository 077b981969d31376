"""Averages of a run's checkpoints: the recipe, and the numbers that come out."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from small_adapters import dense, lora
from small_models import llama_config, llama_shapes, load, near, random_state, save

import mergewise
from mergewise.checkpoint import open_adapter
from mergewise.engine._task import block_elements
from mergewise.errors import TrajectoryError
from mergewise.recipe import load_recipe
from mergewise.trajectories import average_recipe

STEPS = (100, 200, 300, 1000)


def weights(run, method="uniform", **settings):
    made = average_recipe(run, method, **settings)
    return dict(zip(made.steps, made.weights, strict=True))


def test_the_mean_is_the_mean(run, tmp_path):
    mergewise.average(run, tmp_path / "out")
    found = load(tmp_path / "out")
    for name, tensor in found.items():
        every = torch.stack([load(run / f"checkpoint-{s}")[name].double() for s in STEPS])
        torch.testing.assert_close(tensor.double(), every.mean(0), rtol=0, atol=1e-7)


def test_negative_weights_are_used(run, tmp_path):
    given = [-0.25, 0, 0.5, 0.75]
    mergewise.average(run, tmp_path / "out", "weights", weights=given, dtype="float64")
    for name, tensor in load(tmp_path / "out").items():
        each = [load(run / f"checkpoint-{s}")[name].double() for s in STEPS]
        wanted = sum(w * t for w, t in zip(given, each, strict=True))
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)


def test_windows(run):
    assert weights(run) == dict.fromkeys(STEPS, 0.25)
    assert weights(run, "swa", start=150) == dict.fromkeys((200, 300, 1000), 1 / 3)
    assert weights(run, "swa", start=200, every=2) == dict.fromkeys((200, 1000), 0.5)
    assert weights(run, "lawa", last=1) == {1000: 1}
    assert weights(run, "lawa") == dict.fromkeys(STEPS, 0.25)
    # counted from the end
    assert weights(run, "lawa", last=2, every=2) == dict.fromkeys((200, 1000), 0.5)
    assert weights(run, stop=300, last=2) == dict.fromkeys((200, 300), 0.5)


def test_logged_metrics(run):
    assert weights(run, "mwa") == pytest.approx(
        {100: 1 / 15, 200: 2 / 15, 300: 4 / 15, 1000: 8 / 15}
    )
    assert weights(run, "mwa", metric="step", p=0) == pytest.approx(dict.fromkeys(STEPS, 0.25))
    log = run.parent / "log.csv"
    rows = ["step,eval_loss", *(f"{s},{x}" for s, x in zip(STEPS, (2, 1, 1.1, 9), strict=True))]
    log.write_text("\n".join(rows))
    found = weights(run, "swad", log=str(log), converge=2, tolerate=1)
    assert found == dict.fromkeys((200, 300), 0.5)


def test_the_log_in_the_runs_folder_serves_files(run, tmp_path):
    home = tmp_path / "files"
    home.mkdir()
    for step in STEPS:
        source = run / f"checkpoint-{step}/model.safetensors"
        shutil.copy(source, home / f"step_{step}.safetensors")
    with pytest.raises(TrajectoryError, match="--log"):
        weights(home, "mwa")
    shutil.copy(run / "checkpoint-1000/trainer_state.json", home)
    assert weights(home, "mwa") == pytest.approx(weights(run, "mwa"))


@pytest.mark.parametrize("suffix", ["json", "txt", "csv"])
def test_weights_from_files(run, tmp_path, suffix):
    file = tmp_path / f"w.{suffix}"
    file.write_text({
        "json": json.dumps({"checkpoint-100": -0.5, "1000": 1.5}),
        "txt": "-0.5\n0\n0\n1.5\n",
        "csv": "checkpoint-100, -0.5\n1000, 1.5\n",
    }[suffix])  # fmt: skip
    assert weights(run, "weights", weights=str(file)) == {100: -0.5, 1000: 1.5}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1, 2], "2 of them, for 4"), ([1, 1, 0, 0], "--normalize"), ([1, -1, 0, 0], "sum is 0"),
        ("0.5,1e999,0.5,0", "finite number"), ({"checkpoint-7": 1}, "no checkpoint"),
        ("absent.json", "no such file"), ([True, 0, 0, 0], "finite number"), (None, "say them"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be(run, given, said):
    with pytest.raises(TrajectoryError, match=said):
        weights(run, "weights", weights=given)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("mean", {}, "uniform, swa"), ("ema", {}, "decay is required"),
        ("ema", {"decay": 1.0}, "0 <= x < 1"), ("uniform", {"decay": 0.5}, "no setting 'decay'"),
        ("swa", {"start": 2000}, "steps 100 to 1000"), ("swad", {}, "still fall"),
        ("mwa", {"metric": "nix"}, "no nix"), ("mwa", {"metric": "eval_x"}, "no eval_x"),
        ("uniform", {"weights": [1, 0, 0, 0]}, "--method weights"), ("lawa", {"last": 0}, "last"),
        ("uniform", {"base": "x"}, "for adapters"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(run, method, settings, said):
    if settings.get("metric") == "eval_x":
        settings = settings | {"better": "less"}
    if settings.get("metric") == "nix":
        settings = settings | {"better": "more"}
    with pytest.raises(TrajectoryError, match=said):
        weights(run, method, **settings)


def test_it_is_not_guessed_which_metric_is_better(run):
    with pytest.raises(TrajectoryError, match="--better less, or --better more"):
        weights(run, "mwa", metric="nix")


def test_the_recipe_alone_gives_the_same_bytes(run, tmp_path):
    made = average_recipe(run, "ema", decay=0.7, debias=True)
    assert made.text.startswith("# mergewise") and "exponential" in made.text
    mergewise.average(run, tmp_path / "a", "ema", decay=0.7, debias=True)
    mergewise.merge(load_recipe(made.text), tmp_path / "b")
    files = [tmp_path / x / "model.safetensors" for x in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_paths_with_signs_of_references(run, tmp_path):
    odd = run.rename(tmp_path / "lr@1+x")
    mergewise.average(odd, tmp_path / "out", last=2)
    assert (tmp_path / "out/config.json").exists()


def adapters(tmp_path, **config):
    shapes = llama_shapes(layers=1)
    base = random_state(shapes, 0, torch.float32)
    save(tmp_path / "base", base, llama_config(shapes))
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    for i in range(3):
        lora(tmp_path / f"run/checkpoint-{i + 1}", base, modules, seed=i, **config)
    return base


def test_adapters_are_averaged_into_an_adapter(tmp_path):
    named = {"base_model_name_or_path": str(tmp_path / "base")}
    base = adapters(tmp_path, **named)
    mergewise.average(tmp_path / "run", tmp_path / "out", "ema", decay=0.5)
    got = dense(base, tmp_path / "out")
    every = [dense(base, tmp_path / f"run/checkpoint-{i}") for i in (1, 2, 3)]
    for name, tensor in got.items():
        wanted = sum(w * e[name] for w, e in zip((0.25, 0.25, 0.5), every, strict=True))
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
    assert open_adapter(tmp_path / "out").config.raw["r"] == 9


def test_factors_may_be_averaged_apart(tmp_path):
    adapters(tmp_path)
    mergewise.average(
        tmp_path / "run", tmp_path / "out", base=str(tmp_path / "base"), space="factor"
    )
    assert open_adapter(tmp_path / "out").config.raw["r"] == 3


def test_adapters_need_a_base_and_no_company(tmp_path):
    base = adapters(tmp_path)
    with pytest.raises(TrajectoryError, match="--base"):
        average_recipe(tmp_path / "run")
    save(tmp_path / "run/checkpoint-9", base, llama_config(llama_shapes(layers=1)))
    with pytest.raises(TrajectoryError, match="is an adapter"):
        average_recipe(tmp_path / "run")


def test_batch_norms_are_pooled(tmp_path):
    for step, mean in ((1, 0.0), (2, 4.0)):
        state = {"bn.running_mean": torch.full((3,), mean), "bn.running_var": torch.ones(3)}
        save(tmp_path / f"run/step_{step}", state, {"model_type": "x"})
    mergewise.average(tmp_path / "run", tmp_path / "out")
    found = load(tmp_path / "out")
    assert found["bn.running_mean"].tolist() == [2.0] * 3
    assert found["bn.running_var"].tolist() == [5.0] * 3  # 1 + spread of the means


MEASURE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (110, 110))
import mergewise, torch
mergewise.average(sys.argv[1], sys.argv[2], options={"workers": 2})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_and_open_files_do_not_grow_with_checkpoints(tmp_path):
    base = random_state({"w": (1024, 1024)}, 0)
    for i in range(50):
        save(tmp_path / f"run/checkpoint-{i}", near(base, i), {"model_type": "x"})
    peaks = []
    for few in (True, False):
        chosen = "checkpoint-[0-9]" if few else "checkpoint-*"
        code = MEASURE.replace('options={"', f'match="{chosen}", options={{"')
        command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / f"out{few}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    # the 40 more hold 80 MB; blocks shrink as their number grows
    assert peaks[1] - peaks[0] < 40_000_000


def test_blocks_of_many_inputs_are_smaller():
    assert block_elements(1 << 20, 8) == 1 << 20
    assert block_elements(1 << 20, 64) == 1 << 17
    assert block_elements(1 << 20, 10_000) == 1 << 14
    assert block_elements(7, 100) == 7
    held = [count * block_elements(1 << 20, count) for count in range(8, 500)]
    assert max(held) <= 8 << 20


def test_a_damaged_checkpoint_is_named_without_lines_of_a_recipe(run, tmp_path):
    file = run / "checkpoint-300/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrajectoryError) as caught:
        mergewise.average(run, tmp_path / "out")
    problem, hint = str(caught.value).splitlines()
    assert problem.startswith(f"{file}: truncated") and "recipe>" not in problem
    assert "--stop" in hint and not (tmp_path / "out").exists()
    mergewise.average(run, tmp_path / "out", stop=200)


def test_how_many_weights_there_are_and_what_to_do(run):
    with pytest.raises(TrajectoryError, match=r"3 of them, for 4 checkpoints; .*--last"):
        weights(run, "weights", weights="0.2,0.3,0.5")
    with pytest.raises(TrajectoryError, match="no checkpoint from step 2000 on; "):
        weights(run, start=2000)
