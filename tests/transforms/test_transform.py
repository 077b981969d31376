"""Running a transform: what is refused, and that a folder appears whole or not at all."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from _transform_models import images, resnet, save
from safetensors.torch import save_file
from small_models import contents, load

from mergewise.checkpoint import open_checkpoint
from mergewise.errors import (
    CheckpointError,
    DataError,
    IncompatibleModelsError,
    NonFiniteError,
    OutputError,
    TransformError,
)
from mergewise.transforms import Changes, Transform, all_transforms, get_transform, transform
from mergewise.transforms import _write as writing


class Doubled(Transform):
    """For tests: some tensors doubled."""

    name = "doubled"
    summary = "for tests"
    data = "none"
    source = "tests"
    doubled: ClassVar[list[str]] = []
    then: ClassVar[BaseException | None] = None

    def run(self, ask):
        if self.then is not None:
            raise self.then
        tensors = load(ask.checkpoint.folder)
        return Changes({name: tensors[name].double() * 2 for name in self.doubled}, {"x.txt": b"x"})

    @classmethod
    def describe(cls):
        return "2 w"


@pytest.fixture
def doubled(monkeypatch):
    known = {"doubled": Doubled()}
    monkeypatch.setattr("mergewise.transforms.all_transforms", lambda: known)
    monkeypatch.setattr(Doubled, "doubled", [])
    monkeypatch.setattr(Doubled, "then", None)
    return Doubled


@pytest.fixture
def source(tmp_path):
    """Two shards, several types, a tokenizer and a provenance."""
    folder = tmp_path / "source"
    folder.mkdir()
    first = {"a.weight": torch.randn(3, 5), "a.bias": torch.randn(3).bfloat16()}
    second = {"b": torch.arange(7), "c": torch.randn(2, 0), "d": torch.tensor([True, False])}
    for number, state in enumerate((first, second), 1):
        save_file(state, folder / f"model-0000{number}-of-00002.safetensors")
    index = {n: f"model-0000{i}-of-00002.safetensors" for i, s in ((1, first), (2, second))
             for n in s}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text('{"model_type": "x",  "odd": 1}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine")
    (folder / "mergewise_provenance.json").write_text('{"recipe": "r"}')
    return folder


def test_what_changed_is_rounded_to_its_type_and_the_rest_is_as_it_was(doubled, source, tmp_path):
    doubled.doubled = ["a.bias"]
    done = transform("doubled", source, tmp_path / "out")
    assert done.files == ("model.safetensors", "x.txt") and done.changed == ("a.bias",)
    old, new = load(source), load(tmp_path / "out")
    assert {n: (t.dtype, t.shape) for n, t in new.items()} == {
        n: (t.dtype, t.shape) for n, t in old.items()
    }
    assert torch.equal(new["a.bias"], old["a.bias"] * 2)
    assert all(torch.equal(new[name], old[name]) for name in old if name != "a.bias")
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    record = json.loads((tmp_path / "out/mergewise_provenance.json").read_text())
    assert record["before"] == {"recipe": "r"} and record["changed"] == ["a.bias"]
    card = (tmp_path / "out/README.md").read_text()
    assert "license: mit" in card and "doubled" in card and str(tmp_path) not in card
    assert str(tmp_path) not in json.dumps(record)
    assert open_checkpoint(tmp_path / "out").warnings == ()


def test_large_outputs_are_sharded(doubled, source, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "DEFAULT_SHARD_BYTES", 60)
    monkeypatch.setattr(writing, "_BLOCK", 16)
    done = transform("doubled", source, tmp_path / "out")
    assert len(done.files) > 2
    assert all(torch.equal(load(tmp_path / "out")[n], t) for n, t in load(source).items())
    assert open_checkpoint(tmp_path / "out").index is not None


def test_a_checkpoint_of_one_file_without_a_config(doubled, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    doubled.doubled = ["a"]
    transform("doubled", tmp_path / "a.safetensors", tmp_path / "out")
    assert load(tmp_path / "out")["a"].tolist() == [2.0, 2.0]
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), DataError("broken"), OSError("disk")])
def test_what_stops_half_way_leaves_nothing(doubled, source, tmp_path, stop):
    doubled.then = stop
    with pytest.raises(type(stop)):
        transform("doubled", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").write_text("mine")
    with pytest.raises(type(stop)):
        transform("doubled", source, tmp_path / "full", overwrite=True)
    assert contents(tmp_path / "full") == {"model.safetensors": b"mine"}


def test_a_failure_while_writing_leaves_nothing(doubled, source, tmp_path, monkeypatch):
    real, calls = writing.write_at, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(descriptor, data, offset)

    monkeypatch.setattr(writing, "write_at", full)
    with pytest.raises(OutputError, match="no space left"):
        transform("doubled", source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(calls) > 3


def test_a_value_that_does_not_fit_its_type_is_named(doubled, tmp_path):
    save_file({"a": torch.tensor([60000.0]).half()}, tmp_path / "a.safetensors")
    doubled.doubled = ["a"]
    with pytest.raises(NonFiniteError, match="tensor a would hold NaN or infinity as F16"):
        transform("doubled", tmp_path / "a.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked_and_never_an_input(doubled, source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "tokenizer.json").write_text("another's")
    (out / "surgery.t.safetensors").write_text("another's")
    (out / "mergekit_config.yml").write_text("another's")
    with pytest.raises(OutputError, match=r"is not empty.*--overwrite"):
        transform("doubled", source, out)
    with pytest.raises(OutputError, match="is the folder of the input"):
        transform("doubled", source, source, overwrite=True)
    before = contents(source)
    transform("doubled", source, out, overwrite=True)
    assert contents(source) == before
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "tokenizer.json").read_text() == "{}"
    gone = ("surgery.t.safetensors", "mergekit_config.yml", ".mergewise")
    assert not any((out / name).exists() for name in gone)


def test_an_unfinished_merge_is_not_thrown_away_unasked(doubled, source, tmp_path):
    work = tmp_path / "out/.mergewise"
    work.mkdir(parents=True)
    (work / "journal.json").write_text('{"format": 1, "plan": "p", "done": {}}')
    with pytest.raises(OutputError, match=r"unfinished merge.*--restart"):
        transform("doubled", source, tmp_path / "out")
    assert (work / "journal.json").exists()
    transform("doubled", source, tmp_path / "out", restart=True)
    assert not work.exists()


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("batch_norms", {}, TransformError, "unknown transform 'batch_norms'; did you mean batch"),
        ("batch_norm", {"pass": "one"}, TransformError, "no setting 'pass'"),
        ("batch_norm", {"passes": "two"}, TransformError, "one of each, one expected, got 'two'"),
        ("batch_norm", {}, TransformError, "batch_norm needs unlabelled examples; give --data"),
        ("batch_norm", {"data": []}, DataError, "no records"),
        ("batch_norm", {"data": [{"text": "a"}]}, DataError, "row 1 has no field `image`"),
        ("batch_norm", {"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ("batch_norm", {"data": [{"text": "x"}], "models": ["y"]}, TransformError,
         "uses no further models; leave out y"),
        ("batch_norm", {"data": [{"image": 1}], "weights": [1.0]}, TransformError,
         "gives models no weights"),
        ("repair", {"data": [{"image": 1}], "models": ["nowhere"]}, CheckpointError, "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_any_model_is_loaded(
    name, given, error, message, nets, tmp_path, monkeypatch
):
    def load_nothing(*args, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mergewise.transforms._base.open_model", load_nothing)
    with pytest.raises(error, match=message):
        transform(name, nets.resnet, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_models_of_another_shape_are_named(nets, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    save(ResNetForImageClassification(config), tmp_path / "wide")
    with pytest.raises(IncompatibleModelsError, match=r"tensor .* has it as \[.*12.*\], w .*16"):
        transform("repair", nets.resnet, tmp_path / "out", data=nets.data,
                  models={"w": tmp_path / "wide"})  # fmt: skip
    with pytest.raises(IncompatibleModelsError, match="lacks it"):
        transform("repair", nets.resnet, tmp_path / "out", data=nets.data, models=[nets.vit])
    assert not (tmp_path / "out").exists()


def test_images_of_another_kind_leave_nothing_behind(nets, tmp_path):
    data = [{"image": torch.zeros(16, 16, 2, dtype=torch.uint8).numpy(), "label": 0}]
    with pytest.raises(Exception, match="channels"):
        transform("batch_norm", nets.resnet, tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_limit_and_progress(nets, tmp_path):
    told = []
    done = transform("batch_norm", nets.resnet, tmp_path / "out", data=images(24), limit=10,
                     progress=lambda *step: told.append(step))  # fmt: skip
    assert done.numbers["examples"] == 10
    assert ("measuring layer by layer", 6, 6) in told and told[-1][0] == "writing"


def test_every_transform_says_what_it_is():
    assert {"batch_norm", "repair", "surgery"} <= set(all_transforms())
    for name, known in all_transforms().items():
        assert get_transform(name) is known and known.summary and known.describe()
        assert "arXiv" in known.source and known.data in ("none", "unlabelled", "labelled")
        for setting, param in known.params.items():
            assert param.default is None or param.problem(param.default) is None, setting


def test_a_model_stays_usable_after_it_was_watched(nets):
    """Forward passes are cut short by an exception; no hook may stay behind."""
    from mergewise.evidence.models._live import LiveModel
    from mergewise.transforms._measure import Point, measure

    module = resnet(1)
    point = Point("first", module.resnet.embedder.embedder.normalization, 1, "inputs")
    x = torch.randn(2, 3, 16, 16)
    from _transform_models import fed

    with torch.no_grad():
        before = module(x, output_hidden_states=True)
        measure(LiveModel("m", module), [point], fed(images(4)), partial=True)
        after = module(x, output_hidden_states=True)
    assert torch.equal(before.logits, after.logits)
    assert len(before.hidden_states) == len(after.hidden_states)
    assert not any(child._forward_hooks for child in module.modules())
