"""Fisher information of masks, against masks put into the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _gradient_models import (
    class_loss,
    collected,
    examples,
    next_token_loss,
    texts,
    tiny_bert,
    tiny_llama,
)
from torch import Tensor, nn

from mergewise import merge_state_dicts
from mergewise.errors import EvidenceError
from mergewise.evidence import collect, load_evidence
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.statistics._nodes import place_of
from mergewise.evidence.statistics.fisher import Fisher
from mergewise.evidence.statistics.fisher_nodes import FisherNodes

TEXTS = texts()


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_embd=8, n_layer=2, n_head=4, n_positions=16)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def masked(
    model: nn.Module, heads_out: nn.Module, neurons_out: nn.Module, heads: int, loss: Any
) -> tuple[Tensor, Tensor]:
    """Squared gradients of masks ahead of two linear layers, found with masks."""
    masks = [torch.ones(heads, dtype=torch.float64, requires_grad=True)]
    hooks = []
    for i, layer in enumerate((heads_out, neurons_out)):

        def multiply(module: nn.Module, args: Any, i: int = i) -> Any:
            width = args[0].shape[-1]
            if i == 1 and len(masks) == 1:
                masks.append(torch.ones(width, dtype=torch.float64, requires_grad=True))
            return (args[0] * masks[i].repeat_interleave(width // len(masks[i])), *args[1:])

        hooks.append(layer.register_forward_pre_hook(multiply))
    value = loss(model)
    for hook in hooks:
        hook.remove()
    one, other = torch.autograd.grad(value, masks)
    return one.square(), other.square()


def expected(model: nn.Module, layers: list[Any], heads: int, losses: list[Any]) -> list[Any]:
    found = []
    for heads_out, neurons_out in layers:
        each = [masked(model, heads_out, neurons_out, heads, loss) for loss in losses]
        found.append([sum(part) for part in zip(*each, strict=True)])
    return found


def close(sums: Any, name: str, value: Tensor) -> None:
    torch.testing.assert_close(sums.get(name, "squares"), value.detach(), rtol=1e-9, atol=1e-12)


def test_heads_and_neurons_of_a_llama() -> None:
    model = tiny_llama().double()
    sums = collected(FisherNodes(), model, examples(TEXTS), labels="data")
    layers = [(each.self_attn.o_proj, each.mlp.down_proj) for each in model.model.layers]
    found = expected(model, layers, 2, [next_token_loss(ids) for ids in TEXTS])
    for i, (heads, neurons) in enumerate(found):
        start = f"model.layers.{i}."
        close(sums, f"{start}self_attn.q_proj.weight", heads.repeat_interleave(4)[:, None])
        # both heads share their keys
        close(sums, f"{start}self_attn.k_proj.weight", heads.mean().expand(4)[:, None])
        for name in ("self_attn.v_proj", "self_attn.o_proj"):
            close(sums, f"{start}{name}.weight", heads.mean().reshape(1, 1))
        close(sums, f"{start}input_layernorm.weight", heads.mean().reshape(1))
        for name in ("gate_proj", "up_proj"):
            close(sums, f"{start}mlp.{name}.weight", neurons[:, None])
        close(sums, f"{start}mlp.down_proj.weight", neurons.mean().reshape(1, 1))
    every = torch.cat([part for layer in found for part in layer])
    close(sums, "lm_head.weight", every.mean().reshape(1, 1))
    close(sums, "model.norm.weight", every.mean().reshape(1))
    assert dict(sums.counts["model.norm.weight"]) == {"examples": 4}


def test_a_classifier_with_biases_and_norms_behind_its_blocks() -> None:
    model, labels = tiny_bert().double().eval(), [0, 2, 1, 2]
    sums = collected(FisherNodes(), model, examples(TEXTS, labels), labels="data")
    losses = [class_loss(i, y) for i, y in zip(TEXTS, labels, strict=True)]
    [layer] = model.bert.encoder.layer
    pair = (layer.attention.output.dense, layer.output.dense)
    [(heads, neurons)] = expected(model, [pair], 2, losses)
    start = "bert.encoder.layer.0."
    close(sums, f"{start}attention.self.key.bias", heads.repeat_interleave(4))
    close(sums, f"{start}attention.output.LayerNorm.bias", heads.mean().reshape(1))
    close(sums, f"{start}intermediate.dense.bias", neurons)
    close(sums, f"{start}output.dense.bias", neurons.mean().reshape(1))
    close(sums, f"{start}output.LayerNorm.weight", neurons.mean().reshape(1))


def test_joined_matrices_stored_inputs_by_outputs() -> None:
    model = tiny_gpt2().double()
    sums = collected(FisherNodes(), model, examples(TEXTS), labels="data", universal=False)
    layers = [(each.attn.c_proj, each.mlp.c_proj) for each in model.transformer.h]
    [(heads, neurons), _] = expected(model, layers, 4, [next_token_loss(ids) for ids in TEXTS])
    rows = heads.repeat_interleave(2)
    joined = torch.cat([rows, rows, heads.mean().expand(8)])
    close(sums, "transformer.h.0.attn.c_attn.weight", joined[None])
    close(sums, "transformer.h.0.attn.c_attn.bias", joined)
    close(sums, "transformer.h.0.mlp.c_fc.weight", neurons[None])
    assert "transformer.wte.weight" not in sums.counts


def test_a_vision_transformer() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    names = dict(ViTForImageClassification(config).named_parameters())
    unknown = {name for name in names if place_of(name) is None}
    assert all("embeddings" in n or "classifier" in n or n.startswith("vit.layernorm")
               for n in unknown)  # fmt: skip
    stored = "vit.encoder.layer.3.attention.attention.query.weight"
    assert (place := place_of(stored)) and place.role == "query"


def test_gradients_of_batches() -> None:
    model = tiny_llama().double()
    sums = collected(
        FisherNodes(), model, examples(TEXTS), labels="data", per="batch", batch_size=4
    )

    def loss(call: Callable[..., Any]) -> Tensor:
        return sum((next_token_loss(ids)(call) for ids in TEXTS), torch.zeros(())) / 4

    pair = (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj)
    [(heads, _)] = expected(model, [pair], 2, [loss])
    name = "model.layers.1.self_attn.q_proj.weight"
    close(sums, name, heads.repeat_interleave(4)[:, None])
    assert dict(sums.counts[name]) == {"batches": 1}


def test_other_architectures_are_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, **batch: Tensor) -> Tensor:
            return self.part(torch.ones(1, 2))

    from _gradient_models import collect_into

    from mergewise.evidence.statistics._sums import MemorySums

    with pytest.raises(EvidenceError, match=r"no layer with attention heads .* part.weight"):
        collect_into(
            MemorySums(), FisherNodes(), Other(), examples(TEXTS), labels="data",
            loss=lambda module, example: module().sum(),
        )  # fmt: skip
    with pytest.raises(EvidenceError, match="fisher_nodes: `per: batch` and `batch_size`"):
        collected(FisherNodes(), tiny_llama(), examples(TEXTS), per="batch")


def test_merging_by_nodes(tmp_path: Any) -> None:
    one, other = tiny_llama(), tiny_llama()
    for parameter in other.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4, 5]])}
    files = []
    for i, model in enumerate((one, other)):
        collect("fisher_nodes", LiveModel("tiny", model), [batch], tmp_path / f"{i}.evd",
                options={"fisher_nodes": {"labels": "data"}})  # fmt: skip
        found = load_evidence(tmp_path / f"{i}.evd")
        files.append({n: found.values("fisher_nodes", n)["fisher_nodes"]
                      for n in found.tensors("fisher_nodes")})  # fmt: skip
    states = [{n: p.detach() for n, p in m.named_parameters()} for m in (one, other)]
    given = {"information": "fisher_nodes", "normalize": False}

    def merged(evidence: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return merge_state_dicts(
            states, "fisher", parameters=given, evidence=[{"fisher_nodes": e} for e in evidence]
        )

    got = merged(files)
    name = "model.layers.0.self_attn.q_proj.weight"
    a, b = (file[name] for file in files)
    direct = (a * states[0][name] + b * states[1][name]) / (a + b)
    torch.testing.assert_close(got[name], direct)
    # more information on one head's mask moves that head's rows alone
    more = files[0][name].clone()
    more[:4] *= 2
    changed = merged([{**files[0], name: more}, files[1]])[name]
    assert torch.equal(changed[4:], got[name][4:]) and not torch.equal(changed[:4], got[name][:4])


def test_fisher_by_hand_example_by_example_and_by_batch() -> None:
    """log p = w * x with x of 1 and -3: squares 1 + 9, but the batch's mean gradient is -1."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: float) -> Tensor:
            return (self.w * x).sum()

    from _gradient_models import collect_into

    from mergewise.evidence.statistics._sums import MemorySums

    inputs = {"0": 1.0, "1": -3.0}
    rows = examples([[1, 2], [3, 4]])

    def squares(**options: Any) -> tuple[float, dict[str, int]]:
        sums, order = MemorySums(), iter(inputs.values())
        collect_into(sums, Fisher(), Line(), rows, labels="data", **options,
                     loss=lambda module, example: module(next(order)))  # fmt: skip
        return sums.get("w", "squares").item(), dict(sums.counts["w"])

    assert squares() == (10.0, {"examples": 2})
    assert squares(per="batch", batch_size=2) == (1.0, {"batches": 1})
