"""Names and rows as `transformers` has them, of the architectures that are known.

Source: llama.cpp's convert_hf_to_gguf.py and gguf-py's tensor names; checked against what
`transformers` loads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
DERIVED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")
"""Made from the config's `rope_scaling` when the file was written."""
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z0-9_]+)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """How an architecture's GGUF differs from what `transformers` saves.

    Attributes:
        model_type, class_name: of the config.
        layer: the modules of a layer, by their names in GGUF.
        rotary: rows of queries and keys are interleaved in each head.
        shifted: norms hold 1 + what `transformers` stores.
        config: further keys of the config, by their names in the metadata.
        fixed: keys of the config that the metadata does not hold.
    """

    model_type: str
    class_name: str
    layer: dict[str, str]
    rotary: bool = False
    shifted: bool = False
    config: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, object] = field(default_factory=dict)

    def name(self, given: str) -> str | None:
        """The name of a tensor; None for one that is not known."""
        stem, _, kind = given.rpartition(".")
        if stem in _TOP and kind == "weight":
            return f"{_TOP[stem]}.weight"
        found = _BLOCK.fullmatch(given)
        module = self.layer.get(found[2]) if found else None
        return f"model.layers.{int(found[1])}.{module}.{found[3]}" if found and module else None


_SILU: dict[str, object] = {"hidden_act": "silu"}
_GELU: dict[str, object] = {"hidden_activation": "gelu_pytorch_tanh"}
_SLIDING = {"sliding_window": "attention.sliding_window"}
ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, rotary=True, fixed=_SILU),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER, fixed=_SILU),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _LAYER | _QK_NORMS, fixed=_SILU),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _LAYER, shifted=True, fixed=_GELU),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _LAYER | _GEMMA2,
        shifted=True,
        config={
            **_SLIDING,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        fixed=_GELU,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _LAYER | _GEMMA2 | _QK_NORMS,
        shifted=True,
        config=_SLIDING,
        fixed=_GELU,
    ),
}
ARCHITECTURES["mistral"] = ARCHITECTURES["llama"]
