"""Tiny models of many architectures with random weights, and direct computations beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import transformers

from mergewise.evidence.models._live import LiveModel

torch.set_num_threads(1)


def noisy(module: Any, seed: int = 0) -> Any:
    """In evaluation mode, with the same random weights every time; scales are near one."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            scale = value.dim() == 1 and name.endswith("weight")
            value.copy_(0.2 * torch.randn(value.shape, generator=draw) + scale)
    return module.eval()


def llama(seed: int = 0, **changes: Any) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=259, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, **changes,
    )  # fmt: skip
    return noisy(transformers.LlamaForCausalLM(config), seed)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return noisy(transformers.GPT2LMHeadModel(config))


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=40, max_position_embeddings=32,
    )  # fmt: skip
    return noisy(transformers.BertForSequenceClassification(config))


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=12, patch_size=4, num_labels=3,
    )  # fmt: skip
    return noisy(transformers.ViTForImageClassification(config))


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=40, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64,
    )  # fmt: skip
    return noisy(transformers.MixtralForCausalLM(config))


def deepseek() -> Any:
    config = transformers.DeepseekV3Config(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
        first_k_dense_replace=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=40,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    return noisy(transformers.DeepseekV3ForCausalLM(config))


def live(module: Any, tokenizer: Any = None) -> LiveModel:
    return LiveModel("tiny", module, tokenizer)


def sequences(count: int = 6, vocab: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Token ids of lengths 3, 4, …"""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (3 + i,), generator=draw) for i in range(count)]


def batches(given: Iterable[torch.Tensor], size: int, extra: int = 0) -> list[dict[str, Any]]:
    """Padded on the right, by `extra` more positions than needed."""
    held, found = list(given), []
    for start in range(0, len(held), size):
        rows = held[start : start + size]
        width = max(map(len, rows)) + extra
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def seen(module: Any, path: str, calls: Iterable[dict[str, Any]]) -> tuple[Any, Any]:
    """Inputs and outputs of a module in float64 arithmetic, one example at a time, no padding."""
    wide = type(module)(module.config).double() if hasattr(module, "config") else module.double()
    wide.load_state_dict(module.state_dict())
    wide.eval()
    if hasattr(module, "config"):
        # the grouped kernels know no float64
        wide.config._experts_implementation = "eager"
    inputs, outputs = [], []

    def hook(_: Any, args: Any, output: Any) -> None:
        inputs.append(args[0].detach())
        outputs.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = wide.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        for call in calls:
            wide(**{k: v.double() if v.is_floating_point() else v for k, v in call.items()})
    handle.remove()
    flat = [torch.cat([v.reshape(-1, v.shape[-1]) for v in side]) for side in (inputs, outputs)]
    return flat[0], flat[1]


def alone(given: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    """Each sequence a batch of its own."""
    return [{"input_ids": ids[None]} for ids in given]


def everything(evidence: Any) -> dict[tuple[str, str, str], torch.Tensor]:
    """All sums of a file by statistic, tensor, sum."""
    return {
        (statistic, tensor, name): value
        for statistic, tensor in evidence.entries
        for name, value in evidence.sums(statistic, tensor).items()
    }


def counts(evidence: Any) -> dict[str, Any]:
    return {name: known.counts for name, known in evidence.record.statistics.items()}


def assert_close(one: Any, other: Any, rtol: float = 1e-5) -> None:
    """The same sums up to rounding, in the scale of each sum's largest element."""
    first, second = everything(one), everything(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        scale = float(value.abs().max()) + 1e-12
        assert (value - second[key]).abs().max() <= rtol * scale, key
    assert counts(one) == counts(other)
