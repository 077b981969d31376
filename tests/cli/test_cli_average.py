"""`mergewise average`."""

import json
from contextlib import contextmanager

import pytest

from mergewise.cli import _merge


@pytest.fixture
def checkpoints(here):
    """A run of three checkpoints: links to tiny models."""
    (here / "run").mkdir()
    for step, model in ((20, "expert_a"), (100, "expert_b"), (3, "base")):
        (here / f"run/checkpoint-{step}").symlink_to((here / model).resolve())


@pytest.mark.usefixtures("checkpoints")
class TestAverage:
    def test_it_prints_the_folder(self, run, here):
        result = run("average", "run", "out")
        assert (result.exit_code, result.stdout) == (0, "out\n")
        assert result.stderr.startswith("3 of 3 checkpoints, steps 3 to 100\n")
        assert (here / "out/model.safetensors").exists()

    def test_json(self, run):
        found = json.loads(run("average", "run", "out", "--last", "2", "--json").stdout)
        assert (found["steps"], found["weights"]) == ([20, 100], [0.5, 0.5])

    def test_the_recipe_is_printed_and_runs(self, run, here):
        asked = ("run", "--method", "ema", "--decay", "0.5")
        recipe = run("average", *asked, "--recipe")
        (here / "mean.yml").write_text(recipe.stdout)
        assert not (here / "out").exists()
        assert run("merge", "mean.yml", "a").exit_code == 0
        assert run("average", *asked, "b").exit_code == 0
        both = [(here / x / "model.safetensors").read_bytes() for x in "ab"]
        assert both[0] == both[1]

    def test_negative_weights(self, run):
        result = run("average", "run", "--method", "weights", "--weights", "-1,1,1", "--recipe")
        assert "weight: -1.0" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("run",), 2, "give OUT"),
            (("absent", "out"), 1, "checkpoints of one run expected"),
            (("run", "out", "--method", "ema"), 1, "decay is required"),
            (("run", "out", "--method", "nix"), 2, "nix"),
            (("run", "out", "--method", "swad"), 1, "--log"),
            (("run", "out", "--every", "0"), 1, "every"),
        ],
    )
    def test_mistakes(self, run, arguments, code, said):
        result = run("average", *arguments)
        assert result.exit_code == code and said in result.stderr

    def test_one_damaged_checkpoint(self, run, here):
        (here / "run/checkpoint-200").mkdir()
        result = run("average", "run", "out")
        assert result.exit_code == 1 and "<recipe>" not in result.stderr
        assert "error: run/checkpoint-200: no .safetensors file in this folder" in result.stderr
        assert run("average", "run", "out", "--stop", "100").exit_code == 0

    def test_interrupted_it_goes_on(self, run, here, monkeypatch):
        @contextmanager
        def half(out):
            def report(done, total):
                if done * 2 > total:
                    raise KeyboardInterrupt

            yield report

        asked = ("average", "run", "out", "--shard-size", "1kB", "--workers", "1")
        with monkeypatch.context() as patched:
            patched.setattr(_merge, "progress", half)
            stopped = run(*asked)
        assert stopped.exit_code == 130 and not (here / "out/config.json").exists()
        assert stopped.stderr.splitlines()[-1].strip() == f"mergewise {' '.join(asked)}"
        resumed = run(*asked)
        assert resumed.exit_code == 0 and "from before" in resumed.stderr
