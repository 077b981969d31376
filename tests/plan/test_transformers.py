"""What is written loads in transformers, complete, and computes what its tensors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergewise import merge, merge_state_dicts

SMALL = {"vocab_size": 48, "tie_word_embeddings": True}


def llama(tied: bool) -> Any:
    config = transformers.LlamaConfig(
        **{**SMALL, "tie_word_embeddings": tied}, hidden_size=16, intermediate_size=24,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


MAKERS = {
    "llama": lambda: llama(False), "tied llama": lambda: llama(True), "gpt2": gpt2, "t5": t5,
    "bert": bert,
}  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(12).reshape(2, 6)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, **more).logits
    return found


def saved(kind: str, folder: Path, shard: str) -> list[Any]:
    models = []
    for i in range(3):
        torch.manual_seed(i)
        models.append(MAKERS[kind]())
        models[-1].save_pretrained(folder / str(i), max_shard_size=shard)
    return models


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("shard", ["1GB", "6KB"])
def test_a_merge_loads_and_computes(kind: str, shard: str, tmp_path: Path) -> None:
    models = saved(kind, tmp_path, shard)
    document = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "0"),
        "models": [{"model": str(tmp_path / str(i))} for i in (1, 2)],
        "parameters": {"weight": 0.7, "density": 0.6},
    }
    merge(document, tmp_path / "out", shard_size=shard)
    loaded, info = type(models[0]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = merge_state_dicts(
        [m.state_dict() for m in models[1:]],
        "ties",
        base=models[0].state_dict(),
        parameters={"weight": 0.7, "density": 0.6},
    )
    wanted = MAKERS[kind]()
    wanted.load_state_dict(state)
    assert torch.equal(logits(loaded), logits(wanted))
    assert loaded.config.to_dict().keys() == models[0].config.to_dict().keys()


def test_a_longer_model_loads(tmp_path: Path) -> None:
    models = saved("llama", tmp_path, "1GB")
    spans = [("0", 0, 2), ("1", 1, 3), ("2", 2, 3)]
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": [first, last]}]}
        for name, first, last in spans
    ]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    loaded, info = type(models[0]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 5
    parts = [models[int(n)].model.layers[i] for n, a, b in spans for i in range(a, b)]
    for layer, part in zip(loaded.model.layers, parts, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, part.mlp.up_proj.weight)
