"""Representation Surgery: training, its file, and tasks that apply it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from _transform_models import images
from safetensors.torch import load_file, save_file
from small_models import assert_same, contents

from mergewise.errors import DataError, IncompatibleModelsError, TaskError, TransformError
from mergewise.evidence import evaluate, fingerprint_of
from mergewise.evidence._cache import ScoreCache
from mergewise.evidence._inputs import Reading
from mergewise.evidence.evaluators._heads import save_head
from mergewise.evidence.evaluators._surgery import Surgery, load_surgery, surgery_file
from mergewise.methods import Settings
from mergewise.transforms import transform
from mergewise.transforms.surgery import RepresentationSurgery, train

WIDTH = 12


def settings(**given):
    return Settings({n: p.default for n, p in RepresentationSurgery.params.items()} | given)


def features(count=60):
    """Features as encoders give them: with a mean that is not zero."""
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, WIDTH, generator=draw) + torch.linspace(-2, 2, WIDTH)


def test_it_begins_as_the_identity_and_takes_off_what_the_formula_says():
    x = features()
    assert torch.equal(Surgery(torch.randn(4, WIDTH), torch.zeros(WIDTH, 4), "cls").correct(x), x)
    down, up = torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    found = Surgery(down, up, "cls").correct(torch.tensor([[1.0, 4.0], [-1.0, -2.0]]))
    # ReLU(D z) is (1, 0), then (0, 2)
    assert torch.equal(found, torch.tensor([[-1.0, -1.0], [-7.0, -16.0]]))
    barely = train(x, x + 1, settings(steps=1, rate=1e-12))
    assert barely.after == pytest.approx(barely.before, rel=1e-6) == pytest.approx(1.0, rel=1e-6)


def test_a_constant_bias_is_learnt_and_holds_for_new_examples():
    bias = torch.linspace(-1, 1, WIDTH)
    done = train(features(), features() + bias, settings(steps=600, rate=1e-2))
    assert done.before == pytest.approx(float(bias.abs().mean()), rel=1e-5)
    assert done.after < 0.1 * done.before
    fresh = torch.randn(200, WIDTH) + torch.linspace(-2, 2, WIDTH)
    left = (done.surgery.correct(fresh) - fresh - bias).abs().mean()
    assert left < 0.35 * done.before


def test_what_is_minimised_is_the_absolute_distance():
    # of equal inputs seven want 1 more and three nothing: 1 is the median, 0.7 the mean
    x, wanted = torch.ones(10, WIDTH), torch.ones(10, WIDTH)
    wanted[:7] += 1
    done = train(x, wanted, settings(steps=400, rate=1e-2, batch=10))
    torch.testing.assert_close(done.surgery.correct(x), x + 1, rtol=0, atol=0.1)
    assert done.after == pytest.approx(0.3, abs=0.05)


def test_more_steps_come_closer_and_a_seed_decides_everything():
    wanted = features() @ torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))
    losses = [train(features(), wanted, settings(steps=n)).after for n in (1, 100, 800)]
    assert losses[0] > losses[1] > losses[2]
    one, same, other = (
        train(features(), wanted, settings(steps=50, seed=seed)).surgery.file()
        for seed in (4, 4, 5)
    )
    assert one == same != other


def test_features_that_do_not_fit_are_named():
    with pytest.raises(IncompatibleModelsError, match=r"\[60, 12\].*\[60, 5\]"):
        train(features(), features()[:, :5], settings())
    with pytest.raises(DataError, match="training diverged"):
        train(features(), features() * 1e30, settings(rate=1e30, steps=30))


@pytest.fixture
def made(nets, tmp_path):
    """The average ViT with surgeries for tasks ``a`` and ``b``."""
    out = tmp_path / "out"
    transform("surgery", nets.vit, out, data={"a": nets.data, "b": images(9)},
              models={"a": nets.vit_a, "b": nets.vit_b}, steps=150, rate=0.01)  # fmt: skip
    return out


def test_the_folder_is_the_same_model_with_a_file_for_each_task(nets, made):
    old, new = contents(nets.vit), contents(made)
    assert new.keys() - old.keys() == {
        "surgery.a.safetensors", "surgery.b.safetensors", "mergewise_provenance.json", "README.md"
    }  # fmt: skip
    assert all(new[name] == data for name, data in old.items() if name != "model.safetensors")
    assert_same(load_file(nets.vit / "model.safetensors"), load_file(made / "model.safetensors"))
    found = load_surgery(made / "surgery.a.safetensors")
    assert (found.pool, found.width, found.down.shape[0]) == ("cls", 16, 16)
    record = json.loads(found.metadata["surgery"])
    assert record["loss"]["after"] < record["loss"]["before"]
    assert record["expert"]["fingerprint"] == fingerprint_of(nets.vit_a)
    assert found.metadata["task"] == "a"
    assert fingerprint_of(made) != fingerprint_of(nets.vit)


def test_a_second_task_keeps_the_first_and_other_weights_lose_both(nets, made, tmp_path):
    more = tmp_path / "more"
    transform("surgery", made, more, data=images(6), models={"c": nets.vit_a}, steps=2)
    names = {path.name for path in more.glob("surgery.*")}
    assert names == {f"surgery.{x}.safetensors" for x in "abc"}
    assert (more / "surgery.a.safetensors").read_bytes() == (
        made / "surgery.a.safetensors"
    ).read_bytes()
    done = transform("repair", more, tmp_path / "repaired", data=nets.data,
                     models=[nets.vit_a, nets.vit_b])  # fmt: skip
    assert not list((tmp_path / "repaired").glob("surgery.*"))
    assert sum("belongs to the weights before" in text for text in done.warnings) == 3
    transform("batch_norm", nets.resnet, more, data=nets.data, overwrite=True)
    assert not list(more.glob("surgery.*"))


def tasks(head, **more):
    task = {"name": "t", "kind": "image_classification", "data": images(24), "head": str(head)}
    return {"tasks": [task | {"mean": 0.5, "std": 0.5, "size": 16} | more]}


@pytest.fixture
def head(tmp_path):
    save_head(tmp_path / "head.safetensors", torch.randn(3, 16))
    return tmp_path / "head.safetensors"


def test_a_task_applies_the_surgery_that_a_models_folder_holds(nets, made, head, tmp_path):
    cache = ScoreCache(tmp_path / "cache")
    plain = evaluate([nets.vit, made], tasks(head), split="test", cache=cache)
    assert plain.scores["vit"]["t"].metrics == plain.scores["out"]["t"].metrics
    found = evaluate([nets.vit, made], tasks(head, surgery="a"), split="test", cache=cache)
    assert not found.failures
    before, after = (found.scores[name]["t"] for name in ("vit", "out"))
    assert before.metrics == plain.scores["vit"]["t"].metrics
    assert "no surgery a in its folder; scored without" in before.notes
    assert "features corrected by surgery a" in after.notes
    assert after.metrics["nll"] != before.metrics["nll"]
    other = evaluate([made], tasks(head, surgery="b"), split="test", cache=cache)
    assert other.scores["out"]["t"].metrics["nll"] != after.metrics["nll"]
    shutil.copy(made / "surgery.b.safetensors", made / "surgery.a.safetensors")
    again = evaluate([made], tasks(head, surgery="a"), split="test", cache=cache)
    assert again.scores["out"]["t"].metrics == other.scores["out"]["t"].metrics


def test_features_are_those_that_evaluation_tasks_take(nets, head, tmp_path):
    """Trained on the very inputs, the corrected merge agrees with the expert's own score."""
    reading = Reading(prepare={"mean": 0.5, "std": 0.5, "size": 16})
    transform("surgery", nets.vit, tmp_path / "out", data=nets.data, models={"a": nets.vit_a},
              steps=2000, rate=1e-2, batch=24, reading=reading)  # fmt: skip
    found = evaluate({"expert": nets.vit_a, "merge": nets.vit, "out": tmp_path / "out"},
                     tasks(head, surgery="a"), split="test")  # fmt: skip
    expert, merge, out = (found.scores[n]["t"].metrics["nll"]
                          for n in ("expert", "merge", "out"))  # fmt: skip
    assert abs(out - expert) < 0.1 * abs(merge - expert)


@pytest.mark.parametrize(
    ("more", "without_head", "message"),
    [
        ({"surgery": "a"}, True, "surgery corrects features before a head"),
        ({"surgery": "../a"}, False, "letters, digits, dots and dashes expected"),
        ({"surgery": "a", "pool": "mean"}, False, "trained on features with `pool: cls`"),
    ],
)
def test_a_task_that_cannot_apply_it_says_why(more, without_head, message, made, head):
    described = tasks(head, **more)
    if without_head:
        del described["tasks"][0]["head"]
    try:
        found = evaluate([made], described, split="test")
    except TaskError as error:
        assert message in str(error)
    else:
        assert message in found.failures[0][2].message


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"down": torch.ones(2, 4)}, {}, r"it holds down \[2, 4\]"),
        ({"down": torch.ones(2, 4), "up": torch.ones(3, 2)}, {}, r"`up` \[width, rank\] expected"),
        ({"down": torch.ones(2, 4), "up": torch.ones(4, 2)}, {"pool": "cls"}, "no surgery that"),
        (
            {"down": torch.ones(2, 4) / 0, "up": torch.ones(4, 2)},
            {"pool": "cls", "format": "mergewise-surgery"},
            "NaN or infinity",
        ),
    ],
)
def test_files_that_are_none_are_refused(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "surgery.t.safetensors", metadata=metadata)
    with pytest.raises(TaskError, match=message):
        load_surgery(tmp_path / "surgery.t.safetensors")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": {}}, "the expert of each task"),
        ({"data": {"a": images(2)}}, r"unlabelled examples for b; give --data b=FILE"),
        ({"data": images(2)}, "each model needs data of its own; give --data a=FILE --data b=FILE"),
        ({"data": {"x": images(2)}}, "data for 'x'; expected: a, b"),
        ({"rank": 0}, "rank: 1 <= x expected"),
    ],
)
def test_what_does_not_fit_is_named_before_any_model_is_loaded(given, message, nets, tmp_path):
    usual = {"data": {"a": images(2), "b": images(2)}, "models": {"a": nets.vit_a, "b": nets.vit_b}}
    with pytest.raises(TransformError, match=message):
        transform("surgery", nets.vit, tmp_path / "out", **(usual | given))
    assert not (tmp_path / "out").exists()


def test_a_label_that_is_no_name_for_a_file_is_refused(nets, tmp_path):
    with pytest.raises(TransformError, match="label the model: --model NAME=PATH"):
        transform("surgery", nets.vit, tmp_path / "out", data=images(2),
                  models={"../up": nets.vit_a})  # fmt: skip
    assert surgery_file("rot90-b.2") == "surgery.rot90-b.2.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == []
