"""Quantised models on the Hub: fp8 planned from its header, GGUF downloaded to be looked at."""

import pytest
import torch
from small_gguf import info, llama_pairs, raw_file
from small_packed import fp8_blocks, opened, read_all, write_packed

from mergewise.checkpoint import open_reference
from mergewise.checkpoint._hub import forget
from mergewise.errors import CheckpointError


def test_fp8_is_planned_from_its_header_and_read_when_it_is_here(hub, tmp_path):
    codes, scale = fp8_blocks(torch.randn(8, 12), 4)
    stored = {"a.weight": codes, "a.weight_scale_inv": scale}
    settings = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    folder = write_packed(tmp_path / "m", stored, settings)
    hub.add("org/fp8", folder)
    checkpoint = opened("org/fp8")
    assert checkpoint.tensors["a.weight"].stored_as == "F8_E4M3 by 4 x 4"
    assert not any(hub.cache.rglob("*.safetensors"))
    assert torch.equal(read_all("org/fp8")["a.weight"], read_all(folder)["a.weight"])


def test_messages_name_the_model_as_the_hub_does(hub, tmp_path):
    codes, scale = fp8_blocks(torch.randn(8, 12), 4)
    settings = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    stored = {"a.weight": codes, "a.weight_scale_inv": scale}
    commit = hub.add("org/fp8", write_packed(tmp_path / "m", stored, settings))
    with pytest.raises(CheckpointError) as caught:
        open_reference("org/fp8")
    assert str(caught.value).startswith(f"org/fp8@{commit[:12]}/config.json: ")
    assert str(hub.cache) not in str(caught.value)
    assert opened("org/fp8").warnings[0].startswith(f"org/fp8@{commit[:12]}: ")


def test_gguf_alone_in_a_repository(hub, tmp_path):
    data = raw_file(llama_pairs(), [info("token_embd.weight", (4, 32), 8, 0)], bytes(160))
    hub.add("org/gguf", {"m.Q8_0.gguf": data, "README.md": b"?"})
    assert opened("org/gguf").stored_as == "Q8_0"
    assert read_all("org/gguf")["model.embed_tokens.weight"].shape == (4, 32)


def test_gguf_alone_in_a_repository_without_a_network(hub, monkeypatch):
    """Its commit is noted in the cache, though no small file came with it."""
    data = raw_file(llama_pairs(), [info("token_embd.weight", (4, 32), 8, 0)], bytes(160))
    hub.add("org/gguf", {"m.Q8_0.gguf": data})
    assert opened("org/gguf").stored_as == "Q8_0"
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert opened("org/gguf").stored_as == "Q8_0"
