"""A real language model for tests: stories260K of the shared data, as a `transformers` folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(
    os.environ.get("MERGEWISE_DATA", Path(__file__).resolve().parents[1] / "../shared/data")
)
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def shared(*parts: str) -> Path:
    """A file of the shared data; the test is skipped where there is none."""
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"no shared data ({'/'.join(parts)}); MERGEWISE_DATA names their folder")
    return path


def stories(folder: Path) -> Path:
    """The Llama of 260K parameters that writes children's stories, saved in `folder`."""
    from transformers import LlamaForCausalLM

    arrays = np.load(shared("checkpoints", "stories260K.npz"))
    settings = json.loads(shared("checkpoints", "stories260K.config.json").read_text())
    model = LlamaForCausalLM(_config(settings))
    state = {_name(name): torch.from_numpy(arrays[name]) for name in arrays}
    for name, tensor in state.items():
        if "q_proj" in name or "k_proj" in name:
            state[name] = _halves(tensor, settings["dim"] // settings["n_heads"])
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    _tokenizer(
        json.loads(shared("checkpoints", "stories260K.tokenizer.json").read_text())
    ).save_pretrained(folder)
    return folder


def _config(settings: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=settings["dim"],
        intermediate_size=settings["hidden_dim"],
        num_hidden_layers=settings["n_layers"],
        num_attention_heads=settings["n_heads"],
        num_key_value_heads=settings["n_kv_heads"],
        vocab_size=settings["vocab_size"],
        max_position_embeddings=settings["max_seq_len"],
        rms_norm_eps=settings["norm_eps"],
        tie_word_embeddings=True,
        bos_token_id=settings["bos_id"],
        eos_token_id=settings["eos_id"],
    )


def _name(meta: str) -> str:
    if meta == "tok_embeddings.weight":
        return "model.embed_tokens.weight"
    if meta == "norm.weight":
        return "model.norm.weight"
    _, layer, rest = meta.split(".", 2)
    return f"model.layers.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _halves(weight: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of each head from (pair, part) order, which rotates neighbours, to (part, pair)."""
    heads = weight.shape[0] // width
    return weight.view(heads, width // 2, 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(stored: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *stored["pieces"][3:]]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (-score, ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in zip(pieces[259:], stored["scores"][259:], strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    bpe = models.BPE(
        ids, [pair for *_, a, b in sorted(merges) for pair in [(a, b)]],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    inner = Tokenizer(bpe)
    inner.normalizer = normalizers.Prepend(" ")
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
