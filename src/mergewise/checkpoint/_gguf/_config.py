"""A config for `transformers` from a GGUF file's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mergewise.checkpoint._gguf._header import GgufHeader, LongArray
from mergewise.checkpoint._gguf._names import ARCHITECTURES

_COUNTS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}
_NUMBERS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_WIDE_GEMMAS = {("gemma2", 46), ("gemma3", 62)}
"""By their layers: the 27 B models scale attention by the width of a head as it would be."""


def made_config(header: GgufHeader, name: str) -> dict[str, Any]:
    """A config of architecture `name`; what the metadata does not say is left to the defaults."""
    known, metadata = ARCHITECTURES[name], header.metadata
    config: dict[str, Any] = {
        "architectures": [known.class_name],
        "model_type": known.model_type,
        **known.fixed,
    }
    for key, source in _COUNTS.items():
        _put(config, key, count(metadata, f"{name}.{source}"))
    for key, source in {**_NUMBERS, **known.config}.items():
        _put(config, key, _number(metadata.get(f"{name}.{source}")))
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    _put(config, "head_dim", head_width(metadata, name))
    _put(config, "vocab_size", config.get("vocab_size") or _vocabulary(header))
    for key, source in _TOKENS.items():
        _put(config, key, count(metadata, f"tokenizer.ggml.{source}_token_id"))
    _put(config, "rope_scaling", _scaling(metadata, name))
    if (name, config.get("num_hidden_layers")) in _WIDE_GEMMAS:
        config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    return config


def count(metadata: Mapping[str, Any], key: str) -> int | None:
    """A count of the metadata, of all layers alike; None if it is no such thing."""
    value = metadata.get(key)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    return value if type(value) is int and 0 <= value < 2**40 else None


def head_width(metadata: Mapping[str, Any], name: str) -> int | None:
    """Elements of an attention head."""
    stated = count(metadata, f"{name}.attention.key_length")
    hidden = count(metadata, f"{name}.embedding_length")
    heads = count(metadata, f"{name}.attention.head_count")
    return stated or (hidden // heads if hidden and heads else None)


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    if value is not None:
        config[key] = value


def _number(value: Any) -> float | int | None:
    good = type(value) in (int, float) and math.isfinite(value)
    # stored with 32 bits: 1e-6 comes as 9.999999974752427e-07
    return float(f"{value:.7g}") if good and isinstance(value, float) else value if good else None


def _vocabulary(header: GgufHeader) -> int | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        return embedding.shape[0]
    return tokens.length if isinstance(tokens, LongArray) else None


def _scaling(metadata: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    kind = metadata.get(f"{name}.rope.scaling.type")
    factor = _number(metadata.get(f"{name}.rope.scaling.factor"))
    if kind not in ("linear", "yarn") or factor is None:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    original = count(metadata, f"{name}.rope.scaling.original_context_length")
    _put(scaling, "original_max_position_embeddings", original)
    return scaling
