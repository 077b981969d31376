"""REPAIR: moments on target, folded as a hook would do it, the closed form of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from _transform_models import average, fed, images, opener, pixels, plain, resnet, seen, vit
from small_models import load

from mergewise.checkpoint import open_checkpoint
from mergewise.errors import TransformError
from mergewise.evidence.models._live import LiveModel, open_model
from mergewise.methods import Settings
from mergewise.transforms import transform
from mergewise.transforms._edit import Editor
from mergewise.transforms._joint import Joint, averaged_std
from mergewise.transforms._layers import find_layers
from mergewise.transforms.repair import Repair, repair

BATCHES = fed(images(24), batch_size=5)


def settings(**given):
    return Settings({name: p.default for name, p in Repair.params.items()} | given)


def run(module, ends, weights=(0.5, 0.5), **given):
    """Repair `module`; returns its layers."""
    model, chosen = LiveModel("merged", module), settings(**given)
    editor = Editor(model)
    found = find_layers(model, BATCHES[0], editor, chosen.layers)
    pairs = [(weight, opener(end)) for weight, end in zip(weights, ends, strict=True)]
    return found, repair(model, pairs, BATCHES, editor, found, chosen)


def trio(make):
    a, b = make(1), make(2)
    return average(make(1), a, b), a, b


def moments(module, layer):
    rows = seen(module, BATCHES, layer.path, axis=layer.point.axis)
    return rows.mean(0), rows.std(0, correction=0)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
@pytest.mark.parametrize(
    ("make", "layers", "count"),
    [(plain, "activated", 3), (plain, "all", 4), (resnet, "activated", 6), (vit, "all", 13)],
)
def test_afterwards_every_layer_has_the_averaged_moments(make, layers, count, weights):
    merged, a, b = trio(make)
    found, done = run(merged, (a, b), weights, layers=layers)
    assert len(found.layers) == count
    assert min(done.before.values()) < 0.9
    for layer in found.layers:
        (mean, std), (mean_a, std_a), (mean_b, std_b) = (moments(m, layer) for m in (merged, a, b))
        wanted = weights[0] * std_a + weights[1] * std_b
        assert torch.allclose(std, wanted, rtol=1e-3, atol=1e-5), layer.path
        target = weights[0] * mean_a + weights[1] * mean_b
        assert ((mean - target).abs() / wanted.clamp_min(1e-6)).max() < 1e-3, layer.path


def test_variances_are_averaged_where_that_is_asked_for():
    merged, a, b = trio(plain)
    found, _ = run(merged, (a, b), average="variance")
    for layer in found.layers:
        (_, std), (_, one), (_, other) = (moments(m, layer) for m in (merged, a, b))
        assert torch.allclose(std, ((one**2 + other**2) / 2).sqrt(), rtol=1e-3)
        assert not torch.allclose(std, (one + other) / 2, rtol=1e-3)


@pytest.mark.parametrize("make", [plain, resnet])
def test_what_is_written_into_the_weights_equals_hooks_that_rescale(make):
    """The layers are repaired once more, in the forward pass of the untouched average."""
    merged, a, b = trio(make)
    hooked = average(make(1), a, b)
    found, _ = run(merged, (a, b))
    handles = []
    for layer in found.layers:
        (mean, std), (mean_a, std_a), (mean_b, std_b) = (moments(m, layer) for m in (hooked, a, b))
        scale, target = (std_a + std_b) / 2 / std, (mean_a + mean_b) / 2
        shape = [1, -1, 1, 1] if layer.point.axis == 1 else [-1]

        def rescale(_, args, y, s=scale, m=mean, t=target, shape=shape):
            return (y - m.float().view(shape)) * s.float().view(shape) + t.float().view(shape)

        handles.append(hooked.get_submodule(layer.path).register_forward_hook(rescale))
    x = pixels(BATCHES)
    with torch.no_grad():
        outputs = [m(x) for m in (merged, hooked)]
    logits = [getattr(output, "logits", output) for output in outputs]
    assert (logits[0] - logits[1]).abs().max() < 1e-5 * max(1, float(logits[0].abs().max()))


def test_one_pass_comes_close_and_a_pass_for_each_layer_is_exact():
    (merged, a, b), (again, *_) = trio(plain), trio(plain)
    _, each = run(merged, (a, b))
    _, one = run(again, (a, b), passes="one")
    assert max(each.off.values()) < 1e-4 < max(one.off.values()) < 0.2
    assert all(abs(ratio - 1) < 0.1 for ratio in one.after.values())


def test_the_closed_form_of_two_models():
    covariance = torch.tensor([[4.0, 0.3 * 2 * 4], [0.3 * 2 * 4, 16.0]]).double()[:, :, None]
    half = torch.tensor([0.5, 0.5]).double()
    std = float(averaged_std(half, covariance))
    assert std == pytest.approx(2.490, abs=5e-4)
    assert std == pytest.approx(math.sqrt(6.2))
    assert 3.0 / std == pytest.approx(1.2048, abs=5e-5)
    joint = Joint()
    values = torch.randn(2, 50, 3)
    joint.add(values[:, :20])
    joint.add(values[:, 20:])
    measured = torch.stack([torch.cov(values[:, :, c], correction=0) for c in range(3)], dim=-1)
    assert torch.allclose(joint.covariance.float(), measured, atol=1e-5)


def test_the_closed_form_is_exact_in_the_first_layer_and_near_later():
    (merged, a, b), (again, *_) = trio(plain), trio(plain)
    run(merged, (a, b))
    _, done = run(again, (a, b), merged="closed_form")
    assert torch.allclose(merged.first.weight, again.first.weight, rtol=1e-3, atol=1e-6)
    assert torch.allclose(merged.first.bias, again.first.bias, rtol=1e-3, atol=1e-5)
    assert done.after["first"] == pytest.approx(1, abs=1e-3) and done.after["third"] != 1


def test_a_merge_of_one_model_with_itself_stays_as_it_is():
    module, twin = plain(1), plain(1)
    run(module, (twin, plain(1)))
    for value, before in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(value, before, rtol=1e-4, atol=1e-5)


def test_a_negative_scale_of_a_batch_norm_keeps_its_sign():
    merged, a, b = trio(resnet)
    for module in (merged, a, b):
        for child in module.modules():
            if hasattr(child, "running_var"):
                child.weight.data[0] = -child.weight.data[0].abs()
    found, _ = run(merged, (a, b))
    assert all(layer.module.weight[0] < 0 for layer in found.layers)
    _, std = moments(merged, found.layers[0])
    assert torch.allclose(std, sum(moments(m, found.layers[0])[1] for m in (a, b)) / 2, rtol=1e-3)


def test_channels_that_do_not_vary_are_shifted_and_not_blown_up():
    merged, a, b = trio(plain)
    merged.first.weight.data[2] = 0
    _, done = run(merged, (a, b))
    assert done.constant == {"first": 1}
    rows = seen(merged, BATCHES, "first")
    target = (seen(a, BATCHES, "first").mean(0) + seen(b, BATCHES, "first").mean(0)) / 2
    assert torch.allclose(rows[:, 2], target[2].expand(len(rows)), atol=1e-5)


def test_layers_before_a_nonlinearity_are_found_and_no_others():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = LiveModel("plain", plain(1))
    found = find_layers(model, BATCHES[0], Editor(model), "activated")
    assert [layer.path for layer in found.layers] == ["first", "second", "third"]
    every = find_layers(model, BATCHES[0], Editor(model), "all")
    assert [layer.path for layer in every.layers] == ["first", "second", "third", "skip"]
    net = LiveModel("resnet", resnet(1))
    found = find_layers(net, BATCHES[0], Editor(net), "all")
    assert all(layer.norm for layer in found.layers) and len(found.covered) == 6
    torch.manual_seed(0)
    gpt = LiveModel("gpt", GPT2LMHeadModel(GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16)).eval())  # fmt: skip
    ids = type(BATCHES[0])({"input_ids": torch.arange(10)[None]}, None, None, ((0,),), 1)
    found = find_layers(gpt, ids, Editor(gpt), "activated")
    assert [(layer.path, layer.rows) for layer in found.layers] == [("transformer.h.0.mlp.c_fc", 1)]
    assert gpt.module.lm_head.weight is gpt.module.transformer.wte.weight


def test_a_transposed_weight_is_scaled_along_its_outputs():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16)
    made = [GPT2LMHeadModel(config).eval() for _ in range(3)]
    ids = torch.randint(30, (6, 12))
    batches = [type(BATCHES[0])({"input_ids": ids}, None, None, ((0,),) * 6, 6)]
    model = LiveModel("gpt", made[0])
    editor = Editor(model)
    found = find_layers(model, batches[0], editor, "activated")
    ends = [(0.5, opener(end)) for end in made[1:]]
    done = repair(model, ends, batches, editor, found, settings())
    assert done.after["transformer.h.0.mlp.c_fc"] == pytest.approx(1, abs=1e-3)
    assert set(editor.tensors()) == {
        "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"
    }  # fmt: skip


def test_a_folder_is_repaired_and_says_what_it_was_like(nets, tmp_path):
    ends = {"a": nets.vit_a, "b": nets.vit_b}
    done = transform("repair", nets.vit, tmp_path / "out", data=nets.data, models=ends,
                     weights=[0.3, 0.7])  # fmt: skip
    assert "layer norms" in done.warnings[0] and "2 layers repaired" in done.notes[0]
    assert set(done.numbers["after"]) == {"vit.layers.0.mlp.fc1", "vit.layers.1.mlp.fc1"}
    old, new = load(nets.vit), load(tmp_path / "out")
    assert {n for n in old if not torch.equal(old[n], new[n])} == set(done.changed)
    assert len(done.changed) == 4 and all("intermediate" in n or "fc1" in n for n in done.changed)
    x = (pixels(fed(nets.data)) - 0.5) / 0.5
    batches = [type(BATCHES[0])({"pixel_values": x}, None, None, ((0,),), 24)]
    stds = [
        seen(open_model(path, "image_classifier").module, batches, "vit.layers.0.mlp.fc1", axis=2)
        .std(0, correction=0)
        for path in (tmp_path / "out", nets.vit_a, nets.vit_b)
    ]  # fmt: skip
    assert torch.allclose(stds[0], 0.3 * stds[1] + 0.7 * stds[2], rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [0.5, 0.6]}, r"sum to 1\.1; give weights that sum to 1"),
        ({"weights": [1.0]}, "1 weights for 2 models"),
        ({"weights": {"a": 1.0, "c": 0.0}}, "weights of a, c, but the models are a, b"),
        ({"models": {}}, r"needs the models that were merged.*--model"),
        ({"data": None}, "repair needs unlabelled examples"),
        ({"data": {"a": []}}, "data for 'a'; expected: one set of data for all"),
        ({"average": "mean"}, "average: one of std, variance expected"),
        ({"sites": "all"}, "no setting 'sites'"),
    ],
)
def test_what_does_not_fit_is_named_before_any_model_is_loaded(given, message, nets, tmp_path):
    usual = {"data": nets.data, "models": {"a": nets.vit_a, "b": nets.vit_b}}
    with pytest.raises(TransformError, match=message):
        transform("repair", nets.vit, tmp_path / "out", **(usual | given))
    assert not (tmp_path / "out").exists()


def test_a_net_without_biases_is_refused_with_the_reason(tmp_path):
    from small_language import random_llama

    for name in ("m", "a"):
        model = random_llama()
        model.module.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(TransformError, match=r"no layer to repair.*gate_proj has no bias"):
        transform("repair", tmp_path / "m", tmp_path / "out", data=["a text"],
                  models=[tmp_path / "a"])  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_values_are_rounded_as_they_will_be_stored_before_more_is_measured(tmp_path):
    vit(1).bfloat16().save_pretrained(tmp_path / "half")
    model = open_model(tmp_path / "half", "image_classifier", dtype="float32")
    editor = Editor(model, open_checkpoint(tmp_path / "half"))
    name = "vit.layers.0.mlp.fc1.weight"
    value = editor.get(name) * 1.2345
    editor.set(name, value)
    held = model.module.get_parameter(name)
    assert held.dtype == torch.float32 and torch.equal(held, value.bfloat16().float())
    [stored] = editor.tensors()
    assert stored in load(tmp_path / "half") and not torch.equal(held.double(), value)
    assert not editor.can("vit.layers.9.nothing")
