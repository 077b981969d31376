"""Tiny real checkpoints, saved by transformers itself."""

import struct
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama_model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.fixture(scope="session")
def llama(llama_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded(llama_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    llama_model.save_pretrained(folder, max_shard_size="4KB")
    return folder


@pytest.fixture
def write_raw(tmp_path):
    """Write a safetensors file from raw header bytes and data."""

    def write(header: bytes, data: bytes = b"", name="model.safetensors", length=None) -> Path:
        path = tmp_path / name
        count = len(header) if length is None else length
        path.write_bytes(struct.pack("<Q", count) + header + data)
        return path

    return write
