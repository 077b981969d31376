"""Small GGUF files: models as llama.cpp's converter writes them, and files byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import State

TYPES = {"F32": 0, "F16": 1, "BF16": 30}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, arch: str) -> str:
    """The name that the converter gives a tensor."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    names = _LAYER | (_GEMMA if arch in ("gemma2", "gemma3") else {})
    return f"blk.{layer}.{names[module]}.{kind}"


def converted(name: str, value: torch.Tensor, arch: str, config: Any) -> torch.Tensor:
    """A tensor as the converter stores it: rotary rows interleaved, Gemma's norms plus one."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if arch == "llama" and part in heads:
        split = value.reshape(heads[part], 2, -1, *value.shape[1:])
        return split.transpose(1, 2).reshape(value.shape)
    return value + 1 if arch.startswith("gemma") and name.endswith("norm.weight") else value


def write_model(path: Path, model: Any, arch: str, kind: str = "Q8_0") -> State:
    """Write a model of `transformers`; returns what its tensors stand for, by their names there."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    true: State = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = converted(name, value.float(), arch, config).contiguous().numpy()
        code = gguf.GGMLQuantizationType.F32 if stored.ndim == 1 else quantised
        raw = gguf.quants.quantize(stored, code)
        writer.add_tensor(gguf_name(name, arch), raw, raw_dtype=code)
        back = torch.from_numpy(np.array(gguf.quants.dequantize(raw, code)))
        true[name] = undone(name, back, arch, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return true


def undone(name: str, value: torch.Tensor, arch: str, config: Any) -> torch.Tensor:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if arch == "llama" and part in heads:
        split = value.reshape(heads[part], -1, 2, *value.shape[1:])
        return split.transpose(1, 2).reshape(value.shape)
    return value - 1 if arch.startswith("gemma") and name.endswith("norm.weight") else value


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, value: Any, kind: int | None = None) -> bytes:
    """A metadata pair: a string, a 32-bit count, a float, or raw bytes of type `kind`."""
    if kind is not None:
        return text(key) + struct.pack("<I", kind) + value
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    return text(key) + struct.pack("<II", 4, value)


def info(name: str | bytes, shape: Sequence[int], kind: int, offset: int, **lies: Any) -> bytes:
    """A tensor's entry; `shape` with the slowest axis first."""
    axes = lies.get("axes", len(shape))
    sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
    return text(name) + struct.pack("<I", axes) + sizes + struct.pack("<IQ", kind, offset)


def raw_file(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int | None = None,
    count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `tensors` and `count` (of pairs) may lie."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if tensors is None else tensors,
        len(pairs) if count is None else count,
    )
    head += b"".join(pairs) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment) + data


LLAMA: Mapping[str, Any] = {
    "general.architecture": "llama",
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
}


def llama_pairs(**more: Any) -> list[bytes]:
    return [pair(key, value) for key, value in {**LLAMA, **more}.items()]
