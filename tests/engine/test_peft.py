"""PEFT as the oracle: a merged base+adapter computes what PEFT's own model computes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import mergewise

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def llama(**more: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config)


def lora(*modules: str, **more: Any) -> Any:
    return peft.LoraConfig(**{"target_modules": list(modules), "r": 3, "lora_alpha": 7, **more})


def ia3(*modules: str, inward: str, **more: Any) -> Any:
    return peft.IA3Config(target_modules=[*modules, inward], feedforward_modules=[inward], **more)


def adalora(*modules: str, **more: Any) -> Any:
    return peft.AdaLoraConfig(
        target_modules=list(modules), init_r=4, target_r=2, total_step=10, **more
    )


PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 5},
    "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 30, "down_proj": 1},
}
CASES = {
    "plain": (llama, lora("q_proj", "down_proj")),
    "rslora": (llama, lora("q_proj", use_rslora=True, **PATTERNS)),
    "patterns": (llama, lora("q_proj", "down_proj", "up_proj", **PATTERNS)),
    "dora": (llama, lora("q_proj", "down_proj", use_dora=True)),
    "head and norm": (llama, lora("q_proj", "lm_head", modules_to_save=["norm"])),
    "tied embedding": (lambda: llama(tie_word_embeddings=True), lora("q_proj", "embed_tokens")),
    "tied head": (lambda: llama(tie_word_embeddings=True), lora("q_proj", "lm_head")),
    "tied and kept so": (
        lambda: llama(tie_word_embeddings=True),
        lora("q_proj", "embed_tokens", ensure_weight_tying=True),
    ),
    "tied and replaced": (
        lambda: llama(tie_word_embeddings=True),
        lora("q_proj", modules_to_save=["embed_tokens"]),
    ),
    "tied, both replaced": (
        lambda: llama(tie_word_embeddings=True),
        lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "embedding dora": (llama, lora("embed_tokens", use_dora=True)),
    "biases": (lambda: llama(attention_bias=True), lora("q_proj", bias="all")),
    "lora_only": (lambda: llama(attention_bias=True), lora("q_proj", bias="lora_only")),
    "lora_bias": (lambda: llama(attention_bias=True), lora("q_proj", lora_bias=True)),
    "gpt2": (gpt2, lora("c_attn", "c_proj", "wte", fan_in_fan_out=True, use_dora=True)),
    "gpt2, square and head": (gpt2, lora("attn.c_proj", "lm_head", fan_in_fan_out=True)),
    "bert": (bert, lora("query", "dense", task_type="SEQ_CLS", lora_bias=True)),
    "resnet": (resnet, lora("convolution", use_dora=True)),
    "bert, biases": (bert, lora("query", "dense", task_type="SEQ_CLS", bias="all")),
    "adalora": (llama, adalora("q_proj", "down_proj", lora_alpha=7)),
    "adalora gpt2": (gpt2, adalora("c_attn", "attn.c_proj", fan_in_fan_out=True)),
    "adalora, cut": (
        llama,
        adalora(
            "q_proj",
            lora_alpha=40,
            rank_pattern={
                "model.layers.0.self_attn.q_proj.lora_E": [True, False, True, False],
                "model.layers.1.self_attn.q_proj.lora_E": [False, False, False, True],
            },
        ),
    ),
    "ia3": (lambda: llama(attention_bias=True), ia3("k_proj", "v_proj", inward="down_proj")),
    "ia3 gpt2": (gpt2, ia3("c_attn", inward="mlp.c_proj", fan_in_fan_out=True)),
}


def made(model: Any, config: Any, folder: Path) -> tuple[Path, Path]:
    """The model and a random adapter of it, saved."""
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base)
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            scale = 0.2 if "lora_" in name or "ia3_" in name else 0.02
            start = 1.0 if "ia3_" in name or "magnitude" in name else 0.0
            with torch.no_grad():
                parameter.normal_(start, scale)
    tuned.save_pretrained(adapter)
    return base, adapter


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    maker, config = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = maker()
        kind = type(model)
        base, adapter = made(model, config, tmp_path)
        tuned = peft.PeftModel.from_pretrained(kind.from_pretrained(base), adapter).eval()
    recipe = {
        "merge_method": "linear",
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}],
    }
    mergewise.merge(recipe, tmp_path / "out", device="cpu")
    plain, merged = (kind.from_pretrained(p).eval() for p in (base, tmp_path / "out"))
    inputs = torch.randint(0, 64, (2, 7))
    fed = {"pixel_values": torch.randn(2, 3, 32, 32)} if case == "resnet" else {"input_ids": inputs}
    with torch.no_grad():
        wanted, found, before = (m(**fed).logits for m in (tuned, merged, plain))
    assert (wanted - before).abs().max() > 1e-3
    assert torch.allclose(found, wanted, atol=2e-5)
