"""Random models of transformers with several parts, layers of several kinds, and hand-made mixes.

Names are those of the files that `save_pretrained` writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as t
from small_models import State, load

VOCAB = 64
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TWO_SIDED = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]])


def _text(config: Any, model: Any, **more: Any) -> Callable[[int], Any]:
    return lambda layers: model(config(**TEXT | more, num_hidden_layers=layers))


def gemma3(layers: int, vision: int = 2, **text: Any) -> Any:
    config = t.Gemma3Config(
        text_config=TEXT | {"num_hidden_layers": layers, "sliding_window": 3, **text},
        vision_config=VISION | {"num_hidden_layers": vision}, mm_tokens_per_image=1,
        image_token_index=40, boi_token_index=41, eoi_token_index=42,
    )  # fmt: skip
    return t.Gemma3ForConditionalGeneration(config)


def llava(layers: int, vision: int = 2) -> Any:
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**TEXT, num_hidden_layers=layers),
        vision_config=t.CLIPVisionConfig(**VISION, projection_dim=16, num_hidden_layers=vision),
        image_token_index=40,
    )
    return t.LlavaForConditionalGeneration(config)


def t5(layers: int, decoder: int | None = None, tied: bool = True) -> Any:
    config = t.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=layers, num_heads=4,
        num_decoder_layers=decoder or layers, decoder_start_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(config)


def whisper(layers: int, decoder: int | None = None) -> Any:
    config = t.WhisperConfig(
        **TWO_SIDED, encoder_layers=layers, decoder_layers=decoder or layers, num_mel_bins=8,
        max_source_positions=16, max_target_positions=16,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config)


def bart(layers: int, decoder: int | None = None) -> Any:
    config = t.BartConfig(
        **TWO_SIDED, encoder_layers=layers, decoder_layers=decoder or layers,
        max_position_embeddings=32,
    )  # fmt: skip
    return t.BartForConditionalGeneration(config)


def gpt2(layers: int) -> Any:
    config = t.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=layers, n_head=2, n_positions=32, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return t.GPT2LMHeadModel(config)


def bert(layers: int) -> Any:
    config = t.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    return t.BertForMaskedLM(config)


def modernbert(layers: int) -> Any:
    config = t.ModernBertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2, local_attention=4,
    )  # fmt: skip
    return t.ModernBertForMaskedLM(config)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LINEAR = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 4,
    "linear_value_head_dim": 4, "shared_expert_intermediate_size": 8,
}  # fmt: skip
MLA = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 4,
    "qk_nope_head_dim": 4, "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip


def deepseek(layers: int, dense: int = 1) -> Any:
    config = t.DeepseekV3Config(**TEXT | MLA, num_hidden_layers=layers, first_k_dense_replace=dense)
    return t.DeepseekV3ForCausalLM(config)


def qwen3_moe(layers: int, dense: Sequence[int] = (1,), step: int = 1) -> Any:
    config = t.Qwen3MoeConfig(
        **TEXT, **EXPERTS, num_hidden_layers=layers, mlp_only_layers=list(dense),
        decoder_sparse_step=step,
    )  # fmt: skip
    return t.Qwen3MoeForCausalLM(config)


def jamba(layers: int) -> Any:
    config = t.JambaConfig(
        **{k: v for k, v in TEXT.items() if k != "head_dim"}, num_hidden_layers=layers,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, mamba_d_state=4, use_mamba_kernels=False,
    )  # fmt: skip
    return t.JambaForCausalLM(config)


MAKERS: dict[str, Callable[[int], Any]] = {
    "llama": _text(t.LlamaConfig, t.LlamaForCausalLM),
    "tied llama": _text(t.LlamaConfig, t.LlamaForCausalLM, tie_word_embeddings=True),
    "gemma2": _text(t.Gemma2Config, t.Gemma2ForCausalLM, sliding_window=3),
    "qwen3-next": _text(t.Qwen3NextConfig, t.Qwen3NextForCausalLM, **EXPERTS, **LINEAR),
    "qwen3": _text(t.Qwen3Config, t.Qwen3ForCausalLM),
    "gpt2": gpt2, "bert": bert, "t5": t5, "whisper": whisper, "bart": bart, "gemma3": gemma3,
    "llava": llava, "modernbert": modernbert, "deepseek": deepseek, "qwen3-moe": qwen3_moe,
    "jamba": jamba,
}  # fmt: skip


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def made(
    maker: Callable[..., Any] | str, folder: Path, seed: int, *sizes: int, **more: Any
) -> Path:
    """A random model, saved; its biases and norms are random too."""
    torch.manual_seed(seed)
    model = (MAKERS[maker] if isinstance(maker, str) else maker)(*sizes, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return saved(model.eval(), folder)


def reload(folder: Path) -> Any:
    """The model in a folder, by the class its config names; every key must fit."""
    kind = getattr(t, t.AutoConfig.from_pretrained(folder).architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    odd = {key: names for key, names in info.items() if names and key != "error_msgs"}
    assert not odd, odd
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """What a model says of a few tokens (and of a picture, or of a sound)."""
    inputs: dict[str, Any] = {"input_ids": IDS}
    if model.config.model_type == "whisper":
        draw = torch.Generator().manual_seed(0)
        sound = torch.randn(2, 8, 32, generator=draw)
        inputs = {"input_features": sound, "decoder_input_ids": IDS}
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS.flip(1)
    elif hasattr(model.config, "vision_config"):
        inputs = _with_picture(model)
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    assert found.isfinite().all()
    return found


def _with_picture(model: Any) -> dict[str, Any]:
    places = 1 if model.config.model_type == "gemma3" else 4
    ids = torch.tensor([[41, *[40] * places, 42, 3, 4, 5]])
    picture = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    more = {"token_type_ids": (ids == 40).long()} if places == 1 else {}
    return {"input_ids": ids, "pixel_values": picture, **more}


def stacked(prefix: str, layers: Sequence[tuple[State, int]], rest: State) -> State:
    """By hand: `rest` outside the layers at `prefix`, and layer i from (state, number)."""
    out = {name: tensor for name, tensor in rest.items() if not name.startswith(prefix)}
    for index, (state, number) in enumerate(layers):
        start = f"{prefix}{number}."
        for name, tensor in state.items():
            if name.startswith(start):
                out[prefix + f"{index}." + name.removeprefix(start)] = tensor
    return out


def assembled(state: State, config: Any, folder: Path) -> Any:
    """A model of `config` with exactly these tensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({n: v.clone() for n, v in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config.save_pretrained(folder)
    return reload(folder)


def states(*folders: Path) -> list[State]:
    return [load(folder) for folder in folders]


def numbers(state: State, prefix: str) -> list[int]:
    """The layers there are."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state)
    return sorted({int(match[1]) for match in found if match})
