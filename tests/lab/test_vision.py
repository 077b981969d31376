"""The lab's vision family: which files it takes, how it splits them, what it trains and keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.lab import _classified, vision
from benchmarks.lab._contenders import Contender
from benchmarks.lab._evidence import evidence_of
from benchmarks.lab._images import read_images
from benchmarks.lab._run import run_family
from benchmarks.lab._train import Schedule
from benchmarks.lab.vision import Vision
from mergewise.errors import DataError

QUIET = Console(quiet=True)
TASKS = ("edges", "rows", "spots")


def _drawn(kind: str, label: int, chance: np.random.Generator) -> np.ndarray:
    image = chance.integers(0, 60, (28, 28))
    if kind == "rows":
        image[7 * label : 7 * label + 7] += 180
    elif kind == "edges":
        image[:, 7 * label : 7 * label + 7] += 180
    else:
        top, left = divmod(label, 2)
        image[14 * top : 14 * top + 14, 14 * left : 14 * left + 14] += 180
    return image


def _write(folder: Path, name: str, train: int = 120, test: int = 40, **more: object) -> Path:
    chance = np.random.default_rng(len(name))
    arrays: dict[str, object] = {}
    for part, count in (("train", train), ("test", test)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = [_drawn(name, int(k), chance) for k in labels]
        arrays |= {f"x_{part}": np.array(images, dtype=np.uint8), f"y_{part}": labels}
    path = folder / "images" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{**arrays, **more})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in TASKS:
        _write(folder, name, label_names=np.array(["a", "b", "c", "d"]))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Vision:
    family = Vision(data, tmp_path_factory.mktemp("lab"), "fast", "cpu")
    family.train(0, QUIET)
    return family


def _accuracy(family: Vision, state: dict, task: int, split: str = "test") -> float:
    evaluator = family.tasks(0)[task].evaluator
    return evaluator.score(family.live(state, "m"), split).metrics["accuracy"]


def test_files_of_another_shape_are_left_out_and_named(data: Path, tmp_path: Path) -> None:
    for name in TASKS[:2]:
        _write(tmp_path, name)
    colour = {f"x_{part}": np.zeros((n, 32, 32, 3), np.uint8) for part, n in (("train", 120),)}
    _write(tmp_path, "colour", **colour)
    family = Vision(tmp_path, tmp_path / "lab", "fast", "cpu")
    assert [item.name for item in family.found] == ["edges", "rows"]
    assert any("left out" in note and "colour" in note for note in family.notes())


def test_class_names_are_numbers_where_the_file_has_none(tmp_path: Path, data: Path) -> None:
    for name in TASKS[:2]:
        _write(tmp_path, name)
    assert read_images(tmp_path)[0][0].names == ("0", "1", "2", "3")
    assert read_images(data)[0][0].names == ("a", "b", "c", "d")


def test_errors_name_the_file_and_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        Vision(None, tmp_path, "fast", "cpu")
    _write(tmp_path, "rows")
    with pytest.raises(DataError, match=r"images.* 1 sets of 28x28.*2 or more"):
        read_images(tmp_path)
    bad = _write(tmp_path, "edges", y_train=np.zeros(3, np.uint8))
    with pytest.raises(DataError, match=r"edges\.npz: 120 images but 3 labels"):
        read_images(tmp_path)
    for labels, said in (
        (np.zeros((120, 1), np.uint8), r"y_train.*\[120, 1\]"),
        (np.linspace(0, 3, 120), r"y_train.*float64"),
        (np.full(120, -1), r"y_train.*-1"),
    ):
        bad = _write(tmp_path, "edges", y_train=labels)
        with pytest.raises(DataError, match=rf"edges\.npz: {said}"):
            read_images(tmp_path)
    bad = _write(tmp_path, "edges", label_names=np.array(["a", "b"]))
    with pytest.raises(DataError, match=r"edges\.npz: 2 label_names, but labels go up to 3"):
        read_images(tmp_path)
    bad.write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"edges\.npz: arrays x_train"):
        read_images(tmp_path)


def test_splits_do_not_meet_and_differ_by_seed(data: Path) -> None:
    [found, *_] = read_images(data)[0]
    part = found.split(0, training=70, validation=20, test=30)
    assert (len(part.labels), len(part.validation), len(part.test)) == (70, 20, 30)
    seen = {image.numpy().tobytes() for image in part.inputs}
    held = {record["image"].tobytes() for record in part.validation}
    tests = {image.numpy().tobytes() for image in found.test_images}
    assert len(seen) == 70 and len(held) == 20 and not seen & held
    assert {record["image"].tobytes() for record in part.test} <= tests
    other = found.split(1, training=70, validation=20, test=30)
    assert held != {record["image"].tobytes() for record in other.validation}
    again = found.split(0, training=70, validation=20, test=30)
    assert torch.equal(part.inputs, again.inputs)


def test_images_keep_their_labels_through_the_split(data: Path) -> None:
    rows = next(item for item in read_images(data)[0] if item.name == "rows")
    part = rows.split(3, training=50, validation=20, test=30)
    for image, label in zip(part.inputs, part.labels, strict=True):
        assert int(image.float().mean(dim=1).view(4, 7).mean(dim=1).argmax()) == label
    for record in (*part.validation, *part.test):
        assert (
            int(record["image"].mean(axis=1).reshape(4, 7).mean(axis=1).argmax())
            == (record["label"])
        )


def test_experts_know_their_task_better_than_the_base(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert, joint = Schedule(steps=60, rate=3e-3), Schedule(steps=120, rate=3e-3)
    longer = replace(vision.PLANS["fast"], expert=expert, joint=joint, joint_batch=96)
    monkeypatch.setitem(vision.PLANS, "fast", longer)
    family = Vision(data, tmp_path, "fast", "cpu")
    models = family.train(0, QUIET)
    for i, name in enumerate(TASKS):
        gain = _accuracy(family, models.experts[name], i) - _accuracy(family, models.base, i)
        assert gain > 0.2, name
    together = [_accuracy(family, models.joint, i) for i in range(len(TASKS))]
    before = [_accuracy(family, models.base, i) for i in range(len(TASKS))]
    assert sum(together) > sum(before) + 0.5


def test_models_are_kept_and_the_missing_one_is_trained_again_to_the_same_weights(
    trained: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained.train(0, QUIET)
    assert set(first.experts) == set(TASKS)
    assert {tuple(state) for state in first.experts.values()} == {tuple(first.base)}
    gone = trained.home(0) / "expert_rows.safetensors"
    gone.unlink()
    real, made = _classified.train, []

    def counted(*args: object, **more: object) -> float:
        made.append(more["label"])
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(_classified, "train", counted)
    second = trained.train(0, QUIET)
    assert made == ["vision seed 0: rows"]
    for name, tensor in first.experts["rows"].items():
        assert torch.equal(tensor, second.experts["rows"][name]), name
    assert set(load_file(gone)) == set(first.base)


def test_other_settings_are_another_fingerprint(
    data: Path, trained: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = Vision(data, tmp_path, "fast", "cpu")
    assert same.fingerprint(0) == trained.fingerprint(0) != trained.fingerprint(1)
    for name in TASKS:
        _write(tmp_path, name, train=121)
    assert Vision(tmp_path, tmp_path, "fast", "cpu").fingerprint(0) != same.fingerprint(0)
    monkeypatch.setitem(vision.SHAPES, "fast", vision.Shape(32, 1, 2, 14))
    assert Vision(data, tmp_path, "fast", "cpu").fingerprint(0) != same.fingerprint(0)


def test_heads_are_blurred_until_the_base_is_as_bad_as_asked(trained: Vision) -> None:
    known = trained._known(0)
    clean = vision._accuracy(trained.prototypes(0), known)
    blurred = vision._accuracy([head.weight for head in trained.heads(0)], known)
    assert clean > 0.6
    assert blurred == pytest.approx(vision.ZERO_SHOT, abs=0.05)
    for weight, head in zip(trained.prototypes(0), trained.heads(0), strict=True):
        assert ((weight * head.weight).sum(dim=1) > 0).float().mean() > 0.5


def test_heads_of_a_base_that_is_bad_enough_are_not_blurred(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "ZERO_SHOT", 1.1)
    family = Vision(data, tmp_path, "fast", "cpu")
    for head, clean in zip(family.heads(0), family.prototypes(0), strict=True):
        assert torch.allclose(head.weight, clean, atol=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluators_agree_with_the_training_code(trained: Vision, split: str) -> None:
    state = trained.train(0, QUIET).experts["spots"]
    module = trained.live(state, "m").module
    place = TASKS.index("spots")
    found, head = trained.sets(0)[place], trained.heads(0)[place]
    records = getattr(found, split)
    images = torch.stack([torch.from_numpy(record["image"]) for record in records])
    part = _classified.LabSet("x", (), images, torch.zeros(len(images)), [], [])
    with torch.no_grad():
        logits = head.logits(trained.features(module, [(part, torch.arange(len(images)))]))
    right = [int(k) == r["label"] for k, r in zip(logits.argmax(1), records, strict=True)]
    assert _accuracy(trained, state, place, split) == pytest.approx(sum(right) / len(right))


def test_heads_are_fixed_by_the_seed_and_never_merged(trained: Vision) -> None:
    first, again, other = trained.heads(0), trained.heads(0), trained.heads(1)
    assert [tuple(head.weight.shape) for head in first] == [(4, 32)] * 3
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.weight, b.weight) and not torch.equal(a.weight, c.weight)
        assert torch.allclose(a.weight.norm(dim=1), torch.ones(4))
    names = trained.train(0, QUIET).base
    assert not any("head" in name or "classifier" in name or "pooler" in name for name in names)


def test_evidence_is_of_each_experts_own_training_images(trained: Vision) -> None:
    models, place = trained.train(0, QUIET), TASKS.index("rows")
    evidence = evidence_of(trained, 0, models, Contender("", "regmean", examples=1000))
    assert evidence is not None and len(evidence) == len(TASKS)
    found = trained.sets(0)[place]
    module = trained.live(models.experts["rows"], "m").module
    name, layer = [(n, m) for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda m, given, out: seen.append(given[0]))
        trained.features(module, [(found, torch.arange(len(found.labels)))])
        handle.remove()
    rows = seen[0].flatten(0, 1).double()
    gram = evidence[place]["input_gram"][f"{name}.weight"].double()
    torch.testing.assert_close(gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_methods_with_and_without_evidence_run_on_it(trained: Vision) -> None:
    found = run_family(trained, [0], QUIET, (0.3,), ["linear", "task_arithmetic", "fisher"])
    assert [row.failure for row in found.rows if row.failure] == []
    fisher = found.row("fisher")
    assert fisher is not None and set(fisher.runs["default"][0].scores) == set(TASKS)


def test_the_gate_asks_for_room_above_the_average(trained: Vision) -> None:
    [gate] = trained.gates({"pretrained": 0.4, "fine-tuned": 0.77, "linear": 0.48})
    assert gate.holds and "77.0% - 48.0%" in gate.text
    [gate] = trained.gates({"fine-tuned": 0.80, "linear": 0.79})
    assert not gate.holds
    assert trained.gates({"fine-tuned": 0.80}) == []
