"""Experts of a mixture in one tensor: methods that look at matrices take each expert by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _zoo import BY_ID
from safetensors.torch import load_file

from mergewise import merge
from mergewise.checkpoint import open_checkpoint, tensor_kind


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_each_expert_is_a_matrix(method: str, tmp_path: Path) -> None:
    entry = BY_ID["Mixtral"]
    for name, model in {"base": entry.make(), "a": entry.expert(1), "b": entry.expert(2)}.items():
        model.save_pretrained(tmp_path / name)
        model.save_pretrained(tmp_path / f"{name}_new", save_original_format=False)
    for end in ("", "_new"):
        document = {
            "merge_method": method,
            "base_model": str(tmp_path / f"base{end}"),
            "models": [{"model": str(tmp_path / f"{n}{end}")} for n in "ab"],
        }
        merge(document, tmp_path / f"out{end}")
    old = load_file(tmp_path / "out" / "model.safetensors")
    new = load_file(tmp_path / "out_new" / "model.safetensors")
    stack = new["model.layers.1.mlp.experts.down_proj"]
    alone = [old[f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight"] for i in range(4)]
    torch.testing.assert_close(stack, torch.stack(alone), rtol=1e-5, atol=1e-6)


def kinds(kind: str, folder: Path) -> dict[str, str]:
    BY_ID[kind].make().save_pretrained(folder)
    tensors = open_checkpoint(folder).tensors
    return {name: tensor_kind(name, ref.shape) for name, ref in tensors.items()}


def test_kinds_of_stacked_experts(tmp_path: Path) -> None:
    found = kinds("gpt-oss", tmp_path)
    start = "model.layers.0.mlp.experts."
    assert found[f"{start}gate_up_proj"] == found[f"{start}down_proj"] == "stack"
    assert found[f"{start}gate_up_proj_bias"] == found[f"{start}down_proj_bias"] == "vector"
    assert found["model.layers.0.mlp.router.weight"] == "matrix"


def test_kinds_of_a_vision_transformer(tmp_path: Path) -> None:
    found = kinds("ViT", tmp_path)
    assert found["vit.embeddings.cls_token"] == "embedding"
    assert found["vit.embeddings.position_embeddings"] == "embedding"
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == "convolution"
