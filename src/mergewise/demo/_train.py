"""Training the base and the experts: plain AdamW on random windows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mergewise.demo._settings import Settings

if TYPE_CHECKING:
    from torch import Generator, Tensor

Report = Callable[[int, float], None]
"""Called after each step with the steps done and the step's loss."""


def new_model(settings: Settings, tokenizer: Any) -> Any:
    """An untrained Llama with separate input and output embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads // 2,
            max_position_embeddings=2 * settings.context,
            tie_word_embeddings=False,
            initializer_range=settings.initial_spread,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    model: Any,
    streams: Mapping[str, Tensor],
    mix: Mapping[str, float],
    *,
    steps: int,
    rate: float,
    settings: Settings,
    report: Report,
) -> None:
    """Train `model` in place.

    Args:
        streams: token ids by kind of text.
        mix: the share of each kind in a batch.
        steps: number of updates.
        rate: the highest learning rate; it rises over a twentieth of the steps, then falls along
            a cosine to a tenth.
        settings: gives batch, context and seed.
        report: told of each step.
    """
    import torch

    chance = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _shape(step, steps))
    model.train()
    for step in range(steps):
        batch = _batch(streams, mix, settings, chance)
        loss = torch.nn.functional.cross_entropy(
            model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten()
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    model.eval()


def _shape(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def _batch(
    streams: Mapping[str, Tensor], mix: Mapping[str, float], settings: Settings, chance: Generator
) -> Tensor:
    import torch

    names = [name for name, share in mix.items() if share > 0]
    shares = torch.tensor([mix[name] for name in names])
    picks = torch.multinomial(shares, settings.batch, replacement=True, generator=chance)
    return torch.stack([_window(streams[names[i]], settings.context + 1, chance) for i in picks])


def _window(stream: Tensor, length: int, chance: Generator) -> Tensor:
    import torch

    start = int(torch.randint(len(stream) - length, (1,), generator=chance))
    return stream[start : start + length]
