"""Tiny random models of many architectures, made through `transformers`.

Each entry is a config's settings; what a model is run on is made from its kind. The table of
docs/architectures.md is checked against this list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Settings = Mapping[str, Any]
VOCAB = 72
_TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}
_PLAIN = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_VISION = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8, "num_channels": 3,
}  # fmt: skip
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "num_key_value_heads": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        family: for the table: decoder, encoder, encoder-decoder, vision, vision-language, audio.
        title: the name people use.
        model: the class in `transformers`.
        settings: of its config; nested configs as mappings.
        inputs: a name of `INPUTS`.
    """

    family: str
    title: str
    model: str
    settings: Settings = field(default_factory=dict)
    inputs: str = "text"

    @property
    def id(self) -> str:
        return self.title.replace(" ", "-")

    def config(self) -> Any:
        import transformers

        cls = getattr(transformers, self.model).config_class
        return cls(**_nested(self.settings))

    def make(self, seed: int = 0) -> Any:
        """A model with random weights in which no two layers, norms or biases are alike."""
        import transformers

        torch.manual_seed(seed)
        model = getattr(transformers, self.model)(self.config()).eval()
        stir(model, 100 + seed, 0.05)
        return model

    def expert(self, seed: int) -> Any:
        """The model of seed 0 with noise on every floating-point tensor."""
        model = self.make()
        stir(model, seed, 0.02)
        return model

    def run(self, model: Any) -> torch.Tensor:
        """The model's main output on fixed inputs."""
        with torch.no_grad():
            out = model.eval()(**INPUTS[self.inputs](model.config))
        for key in ("logits", "logits_per_image", "last_hidden_state"):
            if getattr(out, key, None) is not None:
                found: torch.Tensor = getattr(out, key)
                return found
        raise AssertionError(f"{self.model} gives {list(out)}")


def _nested(settings: Settings) -> dict[str, Any]:
    return {k: _nested(v) if isinstance(v, dict) else v for k, v in settings.items()}


def stir(model: Any, seed: int, size: float) -> None:
    """Add noise to what is saved of parameters and batch statistics; variances stay positive."""
    chance = torch.Generator().manual_seed(seed)
    unsaved = model._keys_to_ignore_on_save or ()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name not in unsaved:
                noise = torch.randn(value.shape, generator=chance) * size
                value.mul_(1 + noise) if name.endswith("running_var") else value.add_(noise)


def _ids(config: Any) -> torch.Tensor:
    return torch.arange(3, 15).reshape(2, 6)


def _text(config: Any) -> dict[str, Any]:
    return {"input_ids": _ids(config)}


def _pairs(config: Any) -> dict[str, Any]:
    return {"input_ids": _ids(config), "decoder_input_ids": _ids(config).flip(0)}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def _image(config: Any) -> dict[str, Any]:
    return {"pixel_values": _noise(2, 3, 16, 16)}


def _large_image(config: Any) -> dict[str, Any]:
    return {"pixel_values": _noise(2, 3, 32, 32)}


def _both(config: Any) -> dict[str, Any]:
    return {**_text(config), **_image(config)}


def _features(config: Any) -> dict[str, Any]:
    return {"input_features": _noise(2, 8, 16), "decoder_input_ids": _ids(config)}


def _wave(config: Any) -> dict[str, Any]:
    return {"input_values": _noise(1, 800)}


def _with_image_tokens(count: int, token: str) -> Callable[[Any], dict[str, Any]]:
    def make(config: Any) -> dict[str, Any]:
        ids = torch.arange(3, 15).reshape(1, 12)
        ids[0, 2 : 2 + count] = getattr(config, token)
        return {"input_ids": ids, "pixel_values": _noise(1, 3, 16, 16)}

    return make


def _qwen_vision(config: Any) -> dict[str, Any]:
    ids = torch.arange(3, 15).reshape(1, 12)
    ids[0, 2] = config.image_token_id
    return {
        "input_ids": ids,
        "pixel_values": _noise(4, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
    }


def _gemma_vision(config: Any) -> dict[str, Any]:
    made = _with_image_tokens(4, "image_token_id")(config)
    return {**made, "token_type_ids": (made["input_ids"] == config.image_token_id).int()}


INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "text": _text,
    "pairs": _pairs,
    "image": _image,
    "large image": _large_image,
    "text and image": _both,
    "features": _features,
    "wave": _wave,
    "llava": _with_image_tokens(4, "image_token_id"),
    "gemma": _gemma_vision,
    "qwen": _qwen_vision,
}

_D, _E, _ED, _V, _VL = "decoder", "encoder", "encoder-decoder", "vision", "vision-language"
_LLAMA = {**_TEXT, **_GROUPED}
_MOE = {**_LLAMA, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_WIDE = {**_LLAMA, "head_dim": 8}
_QWEN_TEXT = {
    **_LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
}  # fmt: skip

ZOO = (
    Entry(_D, "Llama", "LlamaForCausalLM", _LLAMA),
    Entry(_D, "Llama tied", "LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    Entry(_D, "Mistral", "MistralForCausalLM", _LLAMA),
    Entry(_D, "Qwen2", "Qwen2ForCausalLM", _LLAMA),
    Entry(_D, "Qwen3", "Qwen3ForCausalLM", _WIDE),
    Entry(_D, "Gemma", "GemmaForCausalLM", _WIDE),
    Entry(_D, "Gemma 2", "Gemma2ForCausalLM", {**_WIDE, "sliding_window": 4}),
    Entry(_D, "Gemma 3 text", "Gemma3ForCausalLM", {**_WIDE, "sliding_window": 4}),
    Entry(_D, "Phi-3", "Phi3ForCausalLM", _LLAMA),
    Entry(_D, "GPT-2", "GPT2LMHeadModel", {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    Entry(_D, "GPT-Neo", "GPTNeoForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "window_size": 8,
        "max_position_embeddings": 64}),
    Entry(_D, "GPT-NeoX", "GPTNeoXForCausalLM", _TEXT),
    Entry(_D, "GPT-J", "GPTJForCausalLM", {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
        "rotary_dim": 4}),
    Entry(_D, "OPT", "OPTForCausalLM", {
        **_PLAIN, "ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    Entry(_D, "BLOOM", "BloomForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    Entry(_D, "Falcon", "FalconForCausalLM", {**_PLAIN, "new_decoder_architecture": True,
        "num_kv_heads": 2}),
    Entry(_D, "OLMo 2", "Olmo2ForCausalLM", _LLAMA),
    Entry(_D, "Cohere", "CohereForCausalLM", {**_LLAMA, "use_qk_norm": True}),
    Entry(_D, "Cohere 2", "Cohere2ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    Entry(_D, "StableLM", "StableLmForCausalLM", {**_LLAMA, "use_qkv_bias": True,
        "qk_layernorm": True}),
    Entry(_D, "Granite", "GraniteForCausalLM", _LLAMA),
    Entry(_D, "SmolLM 3", "SmolLM3ForCausalLM", _LLAMA),
    Entry(_D, "Mamba", "MambaForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    Entry(_D, "Mixtral", "MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4}),
    Entry(_D, "Qwen2-MoE", "Qwen2MoeForCausalLM", {
        **_MOE, "shared_expert_intermediate_size": 24}),
    Entry(_D, "Qwen3-MoE", "Qwen3MoeForCausalLM", {**_MOE, "head_dim": 8,
        "mlp_only_layers": [0]}),
    Entry(_D, "DeepSeek-V2", "DeepseekV2ForCausalLM", {**_TEXT, **_MLA}),
    Entry(_D, "DeepSeek-V3", "DeepseekV3ForCausalLM", {**_TEXT, **_MLA}),
    Entry(_D, "gpt-oss", "GptOssForCausalLM", {**_WIDE, "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": 4}),
    Entry(_E, "BERT", "BertForMaskedLM", _TEXT),
    Entry(_E, "RoBERTa", "RobertaForMaskedLM", _TEXT),
    Entry(_E, "DeBERTa-v2", "DebertaV2ForSequenceClassification", {**_TEXT,
        "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0}),
    Entry(_E, "DistilBERT", "DistilBertForMaskedLM", {
        "vocab_size": VOCAB, "dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4,
        "max_position_embeddings": 64}),
    Entry(_E, "ModernBERT", "ModernBertForMaskedLM", {**_TEXT, "cls_token_id": 1,
        "sep_token_id": 2}),
    Entry(_E, "ALBERT", "AlbertForMaskedLM", {**_TEXT, "embedding_size": 16}),
    Entry(_E, "ELECTRA", "ElectraForMaskedLM", {**_TEXT, "embedding_size": 16}),
    Entry(_ED, "T5", "T5ForConditionalGeneration", {
        "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 3,
        "num_heads": 4}, "pairs"),
    Entry(_ED, "BART", "BartForConditionalGeneration", {
        "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "max_position_embeddings": 64}, "pairs"),
    Entry(_ED, "Marian", "MarianMTModel", {
        "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "max_position_embeddings": 64, "pad_token_id": 0,
        "decoder_start_token_id": 0}, "pairs"),
    Entry(_ED, "Whisper", "WhisperForConditionalGeneration", {
        "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "num_mel_bins": 8, "max_source_positions": 8,
        "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1}, "features"),
    Entry(_V, "ViT", "ViTForImageClassification", {**_VISION, "num_labels": 5}, "image"),
    Entry(_V, "DINOv2", "Dinov2ForImageClassification", {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2,
        "image_size": 16, "patch_size": 8, "num_labels": 5}, "image"),
    Entry(_V, "Swin", "SwinForImageClassification", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4],
        "window_size": 4, "num_labels": 5}, "large image"),
    Entry(_V, "ResNet", "ResNetForImageClassification", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": 5,
        "layer_type": "basic"}, "large image"),
    Entry(_V, "ConvNeXt", "ConvNextForImageClassification", {
        "hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 4,
        "num_labels": 5}, "large image"),
    Entry(_V, "CLIP", "CLIPModel", {
        "text_config": {**_TEXT, "projection_dim": 16}, "vision_config": {
            **_VISION, "projection_dim": 16}, "projection_dim": 16}, "text and image"),
    Entry(_V, "SigLIP", "SiglipModel", {
        "text_config": _TEXT, "vision_config": _VISION}, "text and image"),
    Entry(_VL, "LLaVA", "LlavaForConditionalGeneration", {
        "text_config": {**_LLAMA, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"},
        "image_token_id": 70, "image_seq_length": 4}, "llava"),
    Entry(_VL, "Qwen2-VL", "Qwen2VLForConditionalGeneration", {
        "text_config": _QWEN_TEXT, "image_token_id": 70, "video_token_id": 69,
        "vision_start_token_id": 68, "vision_end_token_id": 67,
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2,
            "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2}}, "qwen"),
    Entry(_VL, "Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", {
        "text_config": _QWEN_TEXT, "image_token_id": 70, "video_token_id": 69,
        "vision_start_token_id": 68, "vision_end_token_id": 67,
        "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 40,
            "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1]}}, "qwen"),
    Entry(_VL, "Gemma 3", "Gemma3ForConditionalGeneration", {
        "text_config": {**_WIDE, "sliding_window": 4}, "vision_config": _VISION,
        "mm_tokens_per_image": 4, "image_token_id": 70, "boi_token_id": 69,
        "eoi_token_id": 68}, "gemma"),
    Entry("audio", "Wav2Vec2", "Wav2Vec2ForCTC", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "conv_dim": [16, 16], "conv_kernel": [8, 4],
        "conv_stride": [4, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2}, "wave"),
)  # fmt: skip
BY_ID = {entry.id: entry for entry in ZOO}
