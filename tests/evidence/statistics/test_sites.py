"""Which weight is used where, and under which name it is stored."""

import pytest
import torch
import transformers
from _tiny import bert, deepseek, gpt2, llama, mixtral, vit
from safetensors.torch import load_file

from mergewise.evidence.models._names import Names
from mergewise.evidence.models._sites import Tokens, sites_of


@pytest.mark.parametrize("make", [llama, gpt2, bert, vit, mixtral, deepseek])
def test_parameters_are_made_of_the_tensors_that_are_saved(make, tmp_path):
    module = make()
    module.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = Names(module, stored)
    found = {}
    for parameter, value in module.named_parameters():
        found |= names.split(parameter, value.detach())
    for name, buffer in module.named_buffers():
        found |= names.split(name, buffer)
    assert found.keys() == stored.keys() and not names.mixed
    assert all(torch.equal(value, stored[name]) for name, value in found.items())
    # a model in memory goes by the names it would be saved under
    assert sites_of(module).names.parts.keys() == names.parts.keys()
    assert {s.tensor for s in sites_of(module)} == {s.tensor for s in sites_of(module, stored)}


def test_the_prefix_of_the_whole_model(tmp_path):
    bert().save_pretrained(tmp_path)
    body = transformers.BertModel.from_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    tensors = {site.tensor for site in sites_of(body, stored)}
    assert "bert.encoder.layer.0.attention.self.query.weight" in tensors
    assert tensors <= stored.keys()


def test_tied_weights_are_one_tensor_with_two_uses():
    module = llama(tie_word_embeddings=True)
    sites = sites_of(module, [n for n in module.state_dict() if n != "lm_head.weight"])
    uses = [(s.path, s.kind, s.tied) for s in sites if s.tensor == "model.embed_tokens.weight"]
    assert uses == [("model.embed_tokens", "embedding", True), ("lm_head", "linear", True)]
    assert not any(site.tensor == "lm_head.weight" for site in sites)
    # a file that holds the head instead
    named = sites_of(module, [n for n in module.state_dict() if "embed" not in n])
    assert {s.path for s in named if s.tensor == "lm_head.weight"} == {
        "model.embed_tokens", "lm_head"}  # fmt: skip


def test_what_no_site_describes_is_named():
    assert sites_of(vit()).uncovered == (
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
    )
    assert sites_of(llama()).uncovered == ()


def test_experts_that_are_stored_packed_are_named_as_not_covered():
    config = transformers.GptOssConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40, num_local_experts=3, head_dim=8,
    )  # fmt: skip
    uncovered = sites_of(transformers.GptOssForCausalLM(config)).uncovered
    assert "model.layers.0.mlp.experts.gate_up_proj" in uncovered


@pytest.mark.parametrize(("shape", "rows"), [
    ((2, 3, 5), [0, 1, 2, 3]),  # [examples, positions, channels]
    ((6, 5), [0, 1, 2, 3]),  # all positions
    ((2, 4, 3, 5), None),  # [examples, heads, positions, channels]
    ((2, 3, 4, 5), None),  # [examples, positions, heads, channels]
])  # fmt: skip
def test_padding_is_found_wherever_positions_are(shape, rows):
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    value = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    tokens = Tokens(mask)
    found = tokens.rows(value)
    if rows is not None:
        assert torch.equal(found, value.reshape(-1, 5)[rows])
    else:
        by_position = value if shape[1] == 3 else value.transpose(1, 2)
        expected = torch.cat([by_position[0].reshape(-1, 5), by_position[1, 0].reshape(-1, 5)])
        assert torch.equal(found, expected)
    assert not tokens.unplaced


def test_values_without_positions():
    tokens = Tokens(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert tokens.rows(torch.ones(2, 5)).shape == (2, 5)
    assert tokens.rows(torch.ones(1, 3, 5)).shape == (4, 5)
    assert not tokens.unplaced
    assert tokens.rows(torch.ones(2, 7, 5)).shape == (14, 5)
    assert tokens.unplaced
