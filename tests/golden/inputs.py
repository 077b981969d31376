"""The models behind the golden outputs: small, of Llama's shape, from a fixed numpy seed.

Needs numpy alone, because the interpreter that holds mergekit reads this file too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

HIDDEN, MIDDLE, VOCAB, LAYERS, HEADS, KV_HEADS = 32, 48, 64, 2, 4, 2
NAMES = ("base", "e0", "e1", "e2")
STORED = (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    kv = HIDDEN * KV_HEADS // HEADS
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = (HIDDEN,)
        out[at + "self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        out[at + "self_attn.k_proj.weight"] = (kv, HIDDEN)
        out[at + "self_attn.v_proj.weight"] = (kv, HIDDEN)
        out[at + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        out[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        out[at + "mlp.gate_proj.weight"] = (MIDDLE, HIDDEN)
        out[at + "mlp.up_proj.weight"] = (MIDDLE, HIDDEN)
        out[at + "mlp.down_proj.weight"] = (HIDDEN, MIDDLE)
    return out | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def models() -> dict[str, dict[str, np.ndarray]]:
    """Base and experts by name; experts move a third to all of the elements, at three scales."""
    draw = np.random.Generator(np.random.PCG64(20240229))
    base = {}
    for name, shape in shapes().items():
        centre = 1.0 if "norm" in name else 0.0
        base[name] = (centre + 0.05 * draw.standard_normal(shape)).astype(np.float32)
    out = {"base": base}
    changes = [(0.02, 1.0), (0.01, 0.6), (0.04, 0.3)]
    for expert, (scale, moved) in zip(NAMES[1:], changes, strict=True):
        out[expert] = {}
        for name, weights in base.items():
            step = scale * draw.standard_normal(weights.shape)
            step = np.where(draw.random(weights.shape) < moved, step, 0.0)
            out[expert][name] = (weights + step).astype(np.float32)
    return out


def fingerprint(made: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Tells whether another numpy makes the same models."""
    digest = hashlib.sha256()
    for model in made.values():
        for name, tensor in model.items():
            digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()
