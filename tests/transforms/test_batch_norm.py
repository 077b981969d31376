"""Batch norms measured anew: pooled over all data, layer after layer."""

from __future__ import annotations

import json

import pytest
import torch
from _transform_models import fed, images, pixels, resnet, seen
from small_models import load
from torch import nn

from mergewise.errors import TransformError
from mergewise.evidence._inputs import Reading
from mergewise.evidence.models._live import LiveModel, open_model
from mergewise.transforms import transform
from mergewise.transforms._edit import Editor
from mergewise.transforms.batch_norm import batch_norms, reestimate

FIRST = "resnet.embedder.embedder.normalization"


def run(module, batches, passes="each"):
    model = LiveModel("m", module)
    editor = Editor(model)
    reestimate(model, batches, editor, passes)
    return editor.tensors()


def by_torch(module, batches):
    """Running statistics as PyTorch makes them in training mode, momentum None."""
    for norm in batch_norms(module).values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for one in batches:
            module(one.inputs["pixel_values"])
    return {n: b.clone() for n, b in module.named_buffers() if "running" in n}


@pytest.mark.parametrize(("passes", "near"), [("one", 1e-4), ("each", 0.02)])
def test_one_batch_of_everything_gives_what_training_mode_gives(passes, near):
    """Layer by layer it is what a model in use sees, with variances divided by n - 1."""
    batches = fed(images(20), batch_size=20)
    wanted = by_torch(resnet(1), batches)
    found = run(resnet(1), batches, passes)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=near, atol=near), name


def test_a_pass_for_each_layer_does_not_depend_on_the_batch_size():
    small, large = (run(resnet(1), fed(images(20), size)) for size in (3, 20))
    for name, value in large.items():
        if "tracked" not in name:
            assert torch.allclose(small[name], value, rtol=1e-5, atol=1e-6), name
    assert {int(v) for n, v in small.items() if "tracked" in n} == {7}
    other = run(resnet(1), fed(images(20), 3), "one")
    assert any(not torch.allclose(other[n], v, rtol=1e-3) for n, v in large.items())


def test_in_use_every_batch_norm_then_sees_mean_zero_and_variance_one():
    module, batches = resnet(1), fed(images(20), 6)
    before = seen(module, batches, FIRST, inputs=True)
    assert (before.mean(0) - module.get_submodule(FIRST).running_mean).abs().max() > 0.1
    run(module, batches)
    for path, norm in batch_norms(module).items():
        rows = seen(module, batches, path, inputs=True)
        assert torch.allclose(rows.mean(0), norm.running_mean.double(), atol=1e-5)
        assert torch.allclose(rows.var(0), norm.running_var.double(), rtol=1e-4)


def test_the_folder_is_a_model_with_other_statistics_and_nothing_else(nets, tmp_path):
    out = tmp_path / "out"
    done = transform("batch_norm", nets.resnet, out, data=nets.data, reading=Reading(batch_size=8))
    old, new = load(nets.resnet), load(out)
    assert old.keys() == new.keys()
    changed = {n for n in old if not torch.equal(old[n], new[n])}
    assert changed == set(done.changed) and len(changed) == 18
    assert all("running" in n or "tracked" in n for n in changed)
    assert (out / "preprocessor_config.json").read_bytes() == (
        nets.resnet / "preprocessor_config.json"
    ).read_bytes()
    live = open_model(out, "image_classifier")
    prepared = (pixels(fed(nets.data)) - 0.5) / 0.5
    batches = [type(fed(nets.data)[0])({"pixel_values": prepared}, None, None, ((0,),), 24)]
    rows = seen(live.module, batches, FIRST, inputs=True)
    assert torch.allclose(rows.mean(0), new[f"{FIRST}.running_mean"].double(), atol=1e-4)
    record = json.loads((out / "mergewise_provenance.json").read_text())
    assert record["transform"] == "batch_norm" and len(record["measured"]["layers"]) == 6


def test_a_model_without_batch_norms_is_refused_before_data_is_read(nets, tmp_path):
    with pytest.raises(TransformError, match=r"no batch norm to re-estimate.*running_mean"):
        transform("batch_norm", nets.vit, tmp_path / "out", data=tmp_path / "nowhere.npz")
    assert not (tmp_path / "out").exists()


class Odd(nn.Module):
    """A batch norm that is not used, one without scale, and one between tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.BatchNorm1d(4, affine=False)
        self.unused = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.used(x.movedim(-1, 1))


def test_padding_is_left_out_and_what_is_not_used_is_told():
    from mergewise.evidence.models._call import Fed

    x, mask = torch.randn(5, 6, 4), torch.ones(5, 6, dtype=torch.int64)
    mask[2:, 3:] = 0
    x[mask == 0] = 1000.0
    module = Odd().eval()
    model = LiveModel("odd", module)
    batches = [Fed({"x": x, "attention_mask": mask}, mask, None, ((0,),) * 5, 5)]
    done, left = reestimate(model, batches, Editor(model))
    assert (done, left) == (["used"], ["unused"])
    assert torch.allclose(module.used.running_mean, x[mask == 1].mean(0), atol=1e-5)
    assert torch.allclose(module.used.running_var, x[mask == 1].var(0), rtol=1e-4)
