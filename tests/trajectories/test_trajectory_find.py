"""Which entries of a folder are a run's checkpoints, and in which order."""

import pytest
import torch
from safetensors.torch import save_file

from mergewise.errors import TrajectoryError
from mergewise.trajectories import find
from mergewise.trajectories._find import step_of


def files(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        save_file({"w": torch.ones(2)}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500), ("global_step1000", 1000), ("epoch=3-step=1200.ckpt", 1200),
        ("step_12.safetensors", 12), ("model.v2.iter-7.pt", 7), ("ckpt3", 3), ("epoch_4", 4),
        ("bert2-17", 17), ("final", None), ("step_9/model.safetensors", 9), ("x/0005.bin", 5),
    ],
)  # fmt: skip
def test_steps_in_names(name, step):
    assert step_of(name) == step


def test_a_trainers_folder_is_ordered_by_number(run):
    assert [each.name for each in find(run)] == [f"checkpoint-{s}" for s in (100, 200, 300, 1000)]


def test_files_and_globs(tmp_path):
    home = files(
        tmp_path / "x", "step_2.safetensors", "step_10.safetensors", "ema_10.safetensors",
        "model-00001-of-00002.safetensors",
    )  # fmt: skip
    with pytest.raises(TrajectoryError, match="are both of step 10; choose with --match"):
        find(home)
    assert [each.step for each in find(home, "step_*")] == [2, 10]


def test_folders_with_weights(tmp_path):
    for step in (3, 20):
        files(tmp_path / f"step{step}", "model.safetensors")
    (tmp_path / "logs1").mkdir()
    assert [each.name for each in find(tmp_path)] == ["step3", "step20"]
    assert [each.step for each in find(tmp_path, "*/model.safetensors")] == [3, 20]


@pytest.mark.parametrize(
    ("match", "said"),
    [(None, "--match"), ("nix*", "nothing matches"), ("../*", "without '..'"), ("/x", "without")],
)
def test_nothing_found_or_astray(tmp_path, match, said):
    with pytest.raises(TrajectoryError, match=said):
        find(tmp_path, match)


def test_no_folder(tmp_path):
    with pytest.raises(TrajectoryError, match="a folder with the checkpoints"):
        find(tmp_path / "absent")


def test_names_without_a_step_are_refused(tmp_path):
    files(tmp_path / "final", "model.safetensors")
    with pytest.raises(TrajectoryError, match="no number in the name"):
        find(tmp_path, "final")


def test_what_is_no_run_is_told_apart(tmp_path, run):
    (tmp_path / "file").write_text("")
    for place, said in (
        (tmp_path / "absent", "no such folder"), (tmp_path / "file", "this is a file"),
        (run / "checkpoint-100", "this is one checkpoint"), (tmp_path, "no checkpoints found"),
    ):  # fmt: skip
        with pytest.raises(TrajectoryError, match=said):
            find(place)
