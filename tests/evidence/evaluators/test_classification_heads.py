"""Heads: round trips, cosine logits, and files that are no heads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergewise.errors import CheckpointError, TaskError
from mergewise.evidence.evaluators._heads import Head, load_head, save_head

WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, -1.0]])
BIAS = torch.tensor([0.1, 0.2, 0.3])


def test_a_saved_head_is_loaded_again_and_is_plain_safetensors(tmp_path):
    save_head(tmp_path / "h.safetensors", WEIGHT, BIAS, normalise=True, scale=20.5)
    head = load_head(tmp_path / "h.safetensors")
    assert torch.equal(head.weight, WEIGHT) and torch.equal(head.bias, BIAS)
    assert (head.normalise, head.scale, head.classes, head.width) == (True, 20.5, 3, 2)
    assert torch.equal(load_file(tmp_path / "h.safetensors")["weight"], WEIGHT)
    assert [p.name for p in tmp_path.iterdir()] == ["h.safetensors"]


def test_heads_written_elsewhere_in_half_precision_are_read(tmp_path):
    save_file({"weight": WEIGHT.bfloat16()}, tmp_path / "h.safetensors")
    head = load_head(tmp_path / "h.safetensors")
    assert torch.equal(head.weight, WEIGHT) and head.bias is None
    assert (head.normalise, head.scale) == (False, 1.0)


def test_logits_are_linear_or_scaled_cosines():
    features = torch.tensor([[3.0, 4.0]])
    linear = Head(WEIGHT, BIAS, scale=2.0).logits(features)
    assert torch.allclose(linear, torch.tensor([[22.1, 50.2, -4.7]]))
    cosine = Head(WEIGHT, normalise=True, scale=10.0).logits(features)
    expected = [10 * torch.cosine_similarity(features[0], w, dim=0) for w in WEIGHT]
    assert torch.allclose(cosine[0], torch.stack(expected))
    assert torch.allclose(Head(WEIGHT, normalise=True).logits(7 * features) * 10, cosine)


def test_another_width_is_named():
    with pytest.raises(TaskError, match=r"takes 2 features, the model gives 5"):
        Head(WEIGHT).logits(torch.ones(1, 5))


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"classifier": WEIGHT}, {}, "this file holds classifier"),
        ({"weight": WEIGHT, "extra": BIAS}, {}, "this file holds extra, weight"),
        ({"weight": BIAS}, {}, r"shape \[3\], expected \[classes, width\]"),
        (
            {"weight": WEIGHT, "bias": torch.ones(2)},
            {},
            r"bias has the shape \[2\], expected \[3\]",
        ),
        ({"weight": WEIGHT.long()}, {}, "weight is I64"),
        ({"weight": WEIGHT / 0}, {}, "weight holds NaN or infinity"),
        ({"weight": WEIGHT}, {"normalise": "maybe"}, "true or false expected, got 'maybe'"),
        ({"weight": WEIGHT}, {"scale": "-1"}, "a positive number expected, got '-1'"),
        ({"weight": WEIGHT}, {"scale": "big"}, "a positive number expected, got 'big'"),
    ],
)
def test_files_that_are_no_heads_are_refused(tmp_path, tensors, metadata, message):
    save_file(tensors, tmp_path / "h.safetensors", metadata=metadata)
    with pytest.raises(TaskError, match=message):
        load_head(tmp_path / "h.safetensors")


def test_a_broken_or_absent_file_is_a_checkpoint_error(tmp_path):
    (tmp_path / "h.safetensors").write_bytes(b"not a head")
    for name in ("h.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_head(tmp_path / name)


def test_wrong_shapes_are_not_saved(tmp_path):
    with pytest.raises(TaskError, match="bias has the shape"):
        save_head(tmp_path / "h.safetensors", WEIGHT, torch.ones(2))
    assert not any(tmp_path.iterdir())
