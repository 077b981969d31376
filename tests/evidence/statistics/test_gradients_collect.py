"""Statistics of gradients through `collect`, in files."""

import shutil

import pytest
import torch
from _gradient_models import gradient, next_token_loss, padded, texts, tiny_bert, tiny_llama
from safetensors.torch import load_file
from torch import nn

from mergewise.errors import EvidenceError, OutputError
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.statistics._collect import collect
from mergewise.evidence.statistics._merge import merge_evidence

TEXTS = texts((5, 3, 7, 2, 6, 4))


def batches(size=2):
    return [padded(TEXTS[i : i + size]) for i in range(0, len(TEXTS), size)]


def test_fisher_of_a_checkpoint(tmp_path):
    model = tiny_llama(tied=True)
    model.save_pretrained(tmp_path / "model")
    found = collect(
        "fisher", tmp_path / "model", batches(), tmp_path / "f.safetensors",
        options={"fisher": {"labels": "data"}},
    )  # fmt: skip
    assert set(found.tensors("fisher")) == set(load_file(tmp_path / "model/model.safetensors"))
    direct = [gradient(model.double(), next_token_loss(ids)) for ids in TEXTS]
    for name in found.tensors("fisher"):
        expected = sum(g[name].square() for g in direct) / len(TEXTS)
        value = found.values("fisher", name)["fisher"]
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6, msg=name)


def test_shares_merged_equal_one_whatever_the_labels(tmp_path):
    model = LiveModel("tiny", tiny_llama())
    names = "fisher,gradient_weight,output_gradient_gram"
    one = collect(names, model, batches(1), tmp_path / "one.safetensors", seed=3)
    parts = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for k, path in enumerate(parts):
        collect(names, model, batches(1), path, seed=3, share=(k, 2))
    both = merge_evidence(parts, tmp_path / "both.safetensors")
    for statistic in names.split(","):
        assert set(both.tensors(statistic)) == set(one.tensors(statistic))
        for tensor in one.tensors(statistic):
            assert both.counts(statistic, tensor) == one.counts(statistic, tensor)
            merged = both.sums(statistic, tensor)
            for name, value in one.sums(statistic, tensor).items():
                torch.testing.assert_close(merged[name], value, rtol=1e-4, atol=1e-6)


def test_only_room_for_what_is_kept_is_asked_for(tmp_path, monkeypatch):
    model = LiveModel("tiny", tiny_llama())
    options = {"gradient_weight": {"keep": "product", "tensors": "model.norm.weight"}}
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "g.safetensors"
    # eight numbers in float64
    found = collect("gradient_weight", model, batches(), out, options=options, memory=64)
    assert list(found.tensors("gradient_weight")) == ["model.norm.weight"]
    options["gradient_weight"]["keep"] = "product,absolute"
    with pytest.raises(OutputError, match="sums take 128 B"):
        collect("gradient_weight", model, batches(), tmp_path / "h", options=options, memory=64)


def test_a_mixture_of_experts_is_described_by_the_names_on_disk(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    found = collect(
        "gradient_weight", tmp_path / "model", batches(), tmp_path / "g.safetensors",
        options={"gradient_weight": {"keep": "gradient", "reduction": "sum"}},
    )  # fmt: skip
    sum(next_token_loss(ids)(model) for ids in TEXTS).backward()
    # gradients saved as if they were weights come under the names on disk
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    expected = load_file(tmp_path / "gradients/model.safetensors")
    assert set(found.tensors("gradient_weight")) == set(expected)
    for name, value in expected.items():
        sums = found.sums("gradient_weight", name)
        torch.testing.assert_close(sums["gradient"].float(), value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_stopped_run_leaves_no_file_and_the_module_as_it_was(tmp_path):
    module = tiny_bert()
    module.classifier.weight.requires_grad_(False)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(
            "fisher", LiveModel("tiny", module), batches(), tmp_path / "f.safetensors",
            progress=stop,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert module.training and not module.classifier.weight.requires_grad
    assert not any(m._forward_hooks for m in module.modules())


def test_second_moments_as_evidence(tmp_path):
    model = tiny_llama()
    made = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for _ in range(2):
        model(input_ids=torch.tensor(TEXTS[:1]), labels=torch.tensor(TEXTS[:1])).loss.backward()
        made.step()
    model.save_pretrained(tmp_path / "run")
    torch.save(made.state_dict(), tmp_path / "run/optimizer.pt")
    found = collect(
        "adam", tmp_path / "run", tmp_path / "run/optimizer.pt", tmp_path / "a.safetensors",
        options={"adam": {"allow_pickle": True}},
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        values = found.values("adam", name)
        expected = made.state[parameter]["exp_avg_sq"] / (1 - 0.95**2)
        torch.testing.assert_close(values["second_moment"].float(), expected)
        assert float(values["step"]) == 2


def test_gradients_of_an_offloaded_model_are_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    with pytest.raises(EvidenceError, match="whole model in memory"):
        collect("fisher", tmp_path / "model", batches(), tmp_path / "f.safetensors", offload=True)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x)


def test_any_module_on_batches_of_tensors(tmp_path):
    torch.manual_seed(0)
    model, x = Plain(), torch.randn(6, 3)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    data = [{"x": x[:4], "label": y[:4]}, {"x": x[4:], "label": y[4:]}]
    found = collect(
        "fisher", LiveModel("plain", model), data, tmp_path / "f.safetensors",
        options={"fisher": {"labels": "data"}},
    )  # fmt: skip
    residual = model(x).detach().softmax(-1) - nn.functional.one_hot(y, 2)
    expected = residual.square().T @ x.square() / 6
    torch.testing.assert_close(found.values("fisher", "inner.weight")["fisher"].float(), expected)
    assert found.counts("fisher", "inner.weight") == {"examples": 6}
