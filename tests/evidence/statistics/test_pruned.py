"""Statistics behind pruned layers, and the pruning itself."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import live, llama, mixtral
from small_language import byte_tokenizer

from mergewise.errors import EvidenceError
from mergewise.evidence import collect
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._prune import prune

TEXTS = ["a rose is a rose", "by any other name would smell", "as sweet"]


def site(weight, kind="linear", **more):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight)
    return SimpleNamespace(module=module, parameter="x.weight", kind=kind, **more)


def test_least_of_every_row_go():
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [8.0, 1.0, 1.0, 1.0]])
    squares = torch.tensor([16.0, 1.0, 1.0, 0.25])
    # |W| sqrt(s): 4 2 3 2 and 32 1 1 0.5; of equal ones the first goes
    one = site(weight.clone())
    prune(one, squares, 0.5)
    assert one.module.weight.tolist() == [[1, 0, 3, 0], [8, 0, 1, 0]]
    one = site(weight.clone())
    prune(one, squares, 0.3)
    assert one.module.weight.tolist() == [[1, 0, 3, 4], [8, 1, 1, 0]]
    one = site(weight.clone())
    prune(one, squares, 0.2)
    assert torch.equal(one.module.weight, weight)


def test_weights_of_other_layouts():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=draw)
    squares = torch.rand(6, generator=draw).double()
    plain = site(weight.clone())
    prune(plain, squares, 0.5)
    turned = site(weight.T.clone(), "conv1d_transposed")
    prune(turned, squares, 0.5)
    assert torch.equal(turned.module.weight.T, plain.module.weight)
    conv = site(weight.reshape(4, 3, 2).clone(), "conv")
    prune(conv, squares, 0.5)
    assert torch.equal(conv.module.weight.flatten(1), plain.module.weight)
    grouped = site(weight.clone(), "conv")
    each = torch.rand(12, generator=draw)
    prune(grouped, each, 0.5)
    for rows, own in ((slice(0, 2), each[:6]), (slice(2, 4), each[6:])):
        alone = site(weight[rows].clone())
        prune(alone, own, 0.5)
        assert torch.equal(grouped.module.weight[rows], alone.module.weight)
    packed = site(torch.stack([weight, weight]).clone(), "expert", expert=1, rows=(0, 2))
    prune(packed, squares, 0.5)
    assert torch.equal(packed.module.weight[1, :2], plain.module.weight[:2])
    assert torch.equal(packed.module.weight[0], weight)


def pruned(model, out, share=0.5, names="input_moments", **options):
    each = {name: {"pruned": share} for name in names.split(",")}
    return collect(names, model, TEXTS, out, options=each, overwrite=True, **options)


def sums(evidence, statistic="input_moments"):
    return {n: evidence.sums(statistic, n)["sum_squares"] for n in evidence.tensors(statistic)}


def gpt2_of_bytes():
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=259)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [llama, gpt2_of_bytes])
def test_neither_padding_nor_the_batch_changes_it(tmp_path, make):
    model = live(make(), byte_tokenizer())
    together = sums(pruned(model, tmp_path / "a.evd", batch_size=3))
    alone = sums(pruned(model, tmp_path / "b.evd", batch_size=1))
    assert together.keys() == alone.keys()
    assert all(torch.allclose(together[n], alone[n], rtol=1e-4) for n in together)


def test_a_model_in_memory_is_as_it_was(tmp_path):
    model = live(llama(), byte_tokenizer())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.module.train()
    pruned(model, tmp_path / "a.evd")
    assert model.module.training
    assert all(torch.equal(before[n], v) for n, v in model.module.state_dict().items())


def test_what_a_caller_opened_is_as_it_was_too(tmp_path):
    from mergewise.evidence import open_model

    model = live(llama())
    model.module.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    opened = open_model(tmp_path / "m")
    pruned(opened, tmp_path / "a.evd")
    state = opened.module.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in model.module.state_dict().items())


def test_without_pruning_it_is_what_is_collected_of_a_whole_model(tmp_path):
    model = live(mixtral(), None)
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": ids}]
    whole = sums(collect("input_moments", model, data, tmp_path / "w.evd"))
    options = {"input_moments": {"pruned": 0.0}}
    found = sums(collect("input_moments", model, data, tmp_path / "f.evd", options=options))
    layers = {name for name in whole if ".layers." in name}
    assert found.keys() == layers and any("experts" in name for name in layers)
    assert all(torch.allclose(found[n], whole[n], rtol=1e-5) for n in layers)


def test_outputs_are_those_of_the_layer_as_it_is(tmp_path):
    model = live(llama(), byte_tokenizer())
    names = "input_moments,output_moments"
    both = pruned(model, tmp_path / "both.evd", names=names)
    whole = collect("output_moments", model, TEXTS, tmp_path / "whole.evd")
    first, second = (f"model.layers.{i}.mlp.down_proj.weight" for i in range(2))
    assert torch.allclose(sums(both, "output_moments")[first],
                          sums(whole, "output_moments")[first], rtol=1e-5)  # fmt: skip
    assert not torch.allclose(sums(both, "output_moments")[second],
                              sums(whole, "output_moments")[second], rtol=1e-2)  # fmt: skip
    assert torch.equal(sums(both)[second], sums(pruned(model, tmp_path / "one.evd"))[second])


def test_one_run_is_either_pruned_or_not(tmp_path):
    model = live(llama(), byte_tokenizer())
    options = {"input_moments": {"pruned": 0.5}}
    with pytest.raises(EvidenceError, match="give all of them the same `pruned`"):
        collect("input_moments,output_moments", model, TEXTS, tmp_path / "a", options=options)
    with pytest.raises(EvidenceError, match="leave out --offload"):
        pruned(tmp_path, tmp_path / "c", offload=True)
    with pytest.raises(EvidenceError, match=r"pruned: 0 <= x < 1 expected, got 1"):
        pruned(model, tmp_path / "b", share=1.0)


def test_a_model_without_layers_is_named(tmp_path):
    model = LiveModel("flat", torch.nn.Sequential(torch.nn.Flatten()).eval())
    model.module.add_module("head", torch.nn.Linear(4, 2))
    with pytest.raises(EvidenceError, match="flat"):
        collect("input_moments", model, [{"pixel_values": torch.randn(3, 4)}], tmp_path / "a.evd",
                options={"input_moments": {"pruned": 0.5}})  # fmt: skip


def test_progress_is_told_layer_by_layer(tmp_path):
    seen = []
    pruned(live(llama(), byte_tokenizer()), tmp_path / "a.evd", batch_size=2, progress=seen.append)
    assert [(at.stage, at.done) for at in seen] == [
        ("layer 1 of 2", 2), ("layer 1 of 2", 3), ("layer 2 of 2", 2), ("layer 2 of 2", 3)
    ]  # fmt: skip
