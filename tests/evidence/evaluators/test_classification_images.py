"""Image classification: what reaches the model, and real images end to end."""

import json
import os
from pathlib import Path

import numpy
import pytest
import torch
from _classifiers import images, live, task, vit

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators._heads import save_head

KIND = "image_classification"
DATA = Path(
    os.environ.get("MERGEWISE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")
)


class Seen(torch.nn.Module):
    """Keeps what it is given; its features are the first pixels."""

    def __init__(self, width=3):
        super().__init__()
        self.width, self.batches = width, []

    def forward(self, pixels):
        self.batches.append(pixels)
        return pixels.flatten(1)[:, : self.width]


@pytest.fixture
def head(tmp_path):
    save_head(tmp_path / "head.safetensors", torch.eye(3))
    return tmp_path / "head.safetensors"


@pytest.mark.parametrize("size", [1, 3, 32])
def test_a_whole_classifier_equals_each_image_alone(size):
    model, records = live(vit()), images()
    score = task(KIND, records, batch_size=size).score(model, "test")
    for i, record in enumerate(records):
        pixels = torch.from_numpy(record["image"])[None, None] / 255
        with torch.no_grad():
            expected = -model.module(pixel_values=pixels).logits[0].log_softmax(0)
        assert score.outcomes["prediction"][i] == int(expected.argmin())
        assert score.outcomes["loss"][i] == pytest.approx(
            float(expected[record["label"]]), rel=1e-4
        )
    assert len(set(score.outcomes["prediction"])) > 1


@pytest.mark.parametrize("pool", ["cls", "mean", "pooler", None])
def test_features_of_a_body(tmp_path, pool):
    model, records = live(vit(None)), images()
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    save_head(tmp_path / "h.safetensors", weight)
    score = task(KIND, records, tmp_path / "h.safetensors", pool=pool).score(model, "test")
    pixels = torch.stack([torch.from_numpy(r["image"])[None] / 255 for r in records])
    with torch.no_grad():
        out = model.module(pixel_values=pixels)
    hidden = out.last_hidden_state
    features = {"mean": hidden.mean(1), "pooler": out.pooler_output}.get(pool, hidden[:, 0])
    expected = torch.nn.functional.cross_entropy(
        features @ weight.T, torch.tensor([r["label"] for r in records]), reduction="none"
    )
    assert score.outcomes["loss"] == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_convolutional_body_is_averaged_over_positions(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                          layer_type="basic")  # fmt: skip
    model = live(ResNetModel(config).eval())
    save_head(tmp_path / "h.safetensors", torch.randn(3, 16))
    for pool in ("mean", "pooler"):
        score = task(KIND, images(size=16), tmp_path / "h.safetensors", pool=pool)
        outcomes = score.score(model, "test").outcomes
        if pool == "mean":
            expected = outcomes["loss"]
    assert outcomes["loss"] == pytest.approx(expected, rel=1e-4)  # its pooler is that average


def test_bytes_become_shares_then_mean_and_std_are_applied(head):
    module, records = Seen(), images(channels=3)
    task(KIND, records, head, mean=[0.5, 0.25, 0.0], std=2.0).score(live(module), "test")
    [batch] = module.batches
    expected = torch.from_numpy(records[4]["image"]).movedim(-1, 0) / 255
    expected = (expected - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)) / 2
    assert torch.allclose(batch[4], expected)


def test_floating_point_images_are_taken_as_they_are(head):
    module = Seen()
    records = [{"image": numpy.full((4, 4), 0.25), "label": 0}]
    task(KIND, records, head).score(live(module), "test")
    assert torch.equal(module.batches[0], torch.full((1, 1, 4, 4), 0.25))


def test_grey_images_are_repeated_for_a_model_of_colour_and_not_the_other_way():
    model = live(vit(channels=3))
    score = task(KIND, images()).score(model, "test")
    pixels = torch.stack([torch.from_numpy(r["image"]).expand(3, 8, 8) / 255 for r in images()])
    with torch.no_grad():
        assert score.outcomes["prediction"] == model.module(pixels).logits.argmax(1).tolist()
    with pytest.raises(TaskError, match="images have 3 channels, but tiny takes 1"):
        task(KIND, images(channels=3)).score(live(vit()), "test")


def test_images_are_resized_to_the_models_size_and_that_is_said(head):
    score = task(KIND, images(size=12)).score(live(vit()), "test")
    assert score.notes == ("images resized from 12x12 to 8",)
    module = Seen()
    ramp = numpy.tile(numpy.linspace(0, 1, 12, dtype="float32"), (12, 1))
    task(KIND, [{"image": ramp, "label": 0}], head, size=4).score(live(module), "test")
    row = module.batches[0][0, 0, 0]
    assert row.shape == (4,) and torch.allclose(row, row.flip(0).neg() + 1, atol=1e-5)
    assert torch.all(row.diff() > 0.2)


def test_mean_std_and_size_are_those_of_the_checkpoints_file(tmp_path):
    stated = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    model = live(vit(channels=3), folder=tmp_path)
    told = task(KIND, images(), mean=0.5, std=0.25).score(live(vit(channels=3)), "test")
    assert task(KIND, images()).score(model, "test").outcomes == told.outcomes
    resized = task(KIND, images(size=12)).score(model, "test")
    assert resized.notes == ("images resized from 12x12 to 8",)
    overruled = task(KIND, images(), mean=0.0, std=1.0).score(model, "test")
    assert overruled.outcomes == task(KIND, images()).score(live(vit(channels=3)), "test").outcomes


def test_a_checkpoint_folder_with_a_processors_file_is_scored(tmp_path):
    from transformers import ViTForImageClassification

    from mergewise.evidence.models._live import open_model

    vit(channels=3).save_pretrained(tmp_path / "m")
    stated = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3,
              "image_std": [0.25] * 3, "size": {"height": 8, "width": 8}}  # fmt: skip
    (tmp_path / "m/preprocessor_config.json").write_text(json.dumps(stated))
    model = open_model(tmp_path / "m", task(KIND, []).role())
    assert isinstance(model.module, ViTForImageClassification)
    told = task(KIND, images(), mean=0.5, std=0.25).score(live(vit(channels=3)), "test")
    score = task(KIND, images()).score(model, "test")
    assert score.outcomes["loss"] == pytest.approx(told.outcomes["loss"], rel=1e-4)


def test_a_processor_prepares_the_images_unless_the_task_says_how(tmp_path):
    pytest.importorskip("PIL")
    from transformers import AutoImageProcessor

    stated = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3,
              "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    model = live(vit(channels=3), processor=processor)
    by_processor = task(KIND, images()).score(model, "test")
    by_options = task(KIND, images(), mean=0.5, std=0.5).score(live(vit(channels=3)), "test")
    assert by_processor.outcomes["loss"] == pytest.approx(by_options.outcomes["loss"], rel=1e-4)
    # the size is told, mean and std are still the processor's
    partly = task(KIND, images(), size=8).score(model, "test")
    assert partly.outcomes["loss"] == pytest.approx(by_options.outcomes["loss"], rel=1e-4)
    scaled = [r | {"image": r["image"].astype("float32") / 255} for r in images()]
    as_floats = task(KIND, scaled).score(model, "test")
    assert as_floats.outcomes["loss"] == pytest.approx(by_options.outcomes["loss"], rel=1e-4)


def test_half_precision_models_get_inputs_of_their_type():
    score = task(KIND, images()).score(live(vit().bfloat16()), "test")
    exact = task(KIND, images()).score(live(vit()), "test")
    assert score.metrics["nll"] == pytest.approx(exact.metrics["nll"], rel=0.05)


def test_npz_files_are_read_by_split(tmp_path, head):
    records = images()
    numpy.savez(
        tmp_path / "d.npz",
        x_train=numpy.zeros((1, 8, 8), "uint8"), y_train=numpy.zeros(1, "uint8"),
        x_test=numpy.stack([r["image"] for r in records]),
        y_test=numpy.array([r["label"] for r in records], "uint8"),
    )  # fmt: skip
    file = task(KIND, Data(tmp_path / "d.npz")).score(live(vit()), "test")
    assert file.outcomes == task(KIND, records).score(live(vit()), "test").outcomes


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": 0}, "no field 'image'"),
        ({"image": numpy.zeros(9, "uint8"), "label": 0}, r"shape \[9\]"),
        ({"image": numpy.zeros((3, 8, 8), "uint8"), "label": 0}, r"shape \[3, 8, 8\]"),
        ({"image": numpy.zeros((8, 8), "int64"), "label": 0}, "torch.int64, expected uint8"),
    ],
)
def test_records_that_hold_no_image_are_named(record, message):
    with pytest.raises(DataError, match=message):
        task(KIND, [record]).check()


def test_options_that_do_not_fit_the_images_are_named(head):
    with pytest.raises(TaskError, match="1 channels, but mean has 3 numbers"):
        task(KIND, images(), head, mean=[0.5, 0.5, 0.5]).score(live(Seen()), "test")
    mixed = [*images(2), *images(2, size=9)]
    with pytest.raises(TaskError, match="differ in size; give `size`"):
        task(KIND, mixed, head).score(live(Seen()), "test")
    assert task(KIND, mixed, head, size=8).score(live(Seen()), "test").examples == 4


def test_numbers_or_lists_of_numbers_are_levels():
    from mergewise.evidence.evaluators import get_evaluator

    mean, std = (get_evaluator(KIND).params[name] for name in ("mean", "std"))
    assert mean.problem(0.5) is None and mean.problem([0.5, 0, 1]) is None
    assert "float expected" in mean.problem([0.5, "x"])
    assert "0 < x expected" in std.problem([1.0, 0.0])
    assert "a list of values" in mean.problem([]) and "a list of values" in mean.problem([None])
    assert mean.convert([1, 0.5]) == [1.0, 0.5] and mean.convert(1) == 1.0


def test_a_tasks_file_may_give_lists(tmp_path):
    from mergewise.evidence import evaluate

    [(_, row)] = evaluate(
        {"m": live(vit(channels=3))},
        {"tasks": [{"name": "t", "kind": KIND, "data": images(), "mean": [0.5, 0.4, 0.3],
                    "std": 0.5, "label_names": ["x", "y", "z"]}]},
    ).scores.items()  # fmt: skip
    expected = task(KIND, images(), mean=[0.5, 0.4, 0.3], std=0.5).score(
        live(vit(channels=3)), "test"
    )
    assert row["t"].outcomes == expected.outcomes
    assert row["t"].metrics["recall_y"] == expected.metrics["recall_1"]


@pytest.mark.skipif(not (DATA / "images/mnist.npz").is_file(), reason="shared data not here")
def test_nearest_means_of_pixels_recognise_real_digits(tmp_path):
    path = DATA / "images/mnist.npz"
    with numpy.load(path) as arrays:
        x, y = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    means = torch.stack([x[y == k].float().mean(0).flatten() / 255 for k in range(10)])
    save_head(tmp_path / "h.safetensors", means, normalise=True, scale=20.0)
    evaluator = task(KIND, Data(path, rows=(0, 500)), tmp_path / "h.safetensors")
    score = evaluator.score(live(Seen(28 * 28)), "test")
    assert score.examples == 500
    assert 0.7 < score.metrics["accuracy"] < 0.9  # a ridge classifier reaches 0.85
    assert score.metrics["macro_accuracy"] == pytest.approx(
        sum(v for n, v in score.metrics.items() if n.startswith("recall_")) / 10
    )
