"""Tiny models in float64, and gradients of their examples taken another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mergewise.evidence._objective import Example, examples_of
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.evidence.statistics._gradients import Seen, run_examples
from mergewise.evidence.statistics._sums import MemorySums
from mergewise.methods import Settings

VOCAB = 13


def tiny_llama(tied: bool = False, **more: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        tie_word_embeddings=tied, **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tiny_bert(classes: int = 3) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, num_labels=classes,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.train()


def texts(lengths: Sequence[int] = (5, 3, 7, 2), seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in lengths]


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def examples(
    rows: Sequence[Sequence[int]], labels: Sequence[int] | None = None, size: int = 2, **how: bool
) -> list[Example]:
    """Unpacked from padded batches of `size`."""
    found: list[Example] = []
    for i in range(0, len(rows), size):
        batch: dict[str, Any] = padded(rows[i : i + size], **how)
        if labels is not None:
            batch["labels"] = torch.tensor(labels[i : i + size])
        found += examples_of(batch, i)
    return found


def settings(statistic: Statistic, **options: Any) -> Settings:
    known = {name: param.default for name, param in statistic.params.items()}
    assert options.keys() <= known.keys()
    return Settings(known | options)


def collected(
    statistic: Statistic, module: nn.Module, rows: Sequence[Example], seed: int = 0, **options: Any
) -> MemorySums:
    sums = MemorySums(float64=True)
    collect_into(sums, statistic, module, rows, seed=seed, **options)
    return sums


def collect_into(
    sums: MemorySums, statistic: Statistic, module: nn.Module, rows: Sequence[Example],
    seed: int = 0, loss: Any = None, **options: Any,
) -> Seen:  # fmt: skip
    run = Pass(settings(statistic, **options), module, sums)
    model = LiveModel("tiny", module)
    return run_examples(model, rows, [(statistic, run)], seed=seed, loss=loss)


def gradient(module: nn.Module, loss: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """The gradient of ``loss(call)``, where `call` runs the module, by functional autograd."""
    parameters = {n: p.detach() for n, p in module.named_parameters()}

    def value(given: Mapping[str, Tensor]) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(module, dict(given), args, kwargs, tie_weights=True)

        return loss(call)

    return torch.func.grad(value)(parameters)


def next_token_loss(ids: Sequence[int]) -> Callable[[Any], Tensor]:
    """Summed over tokens, written out."""

    def loss(call: Any) -> Tensor:
        logits = call(input_ids=torch.tensor([list(ids)])).logits[0]
        table = logits - logits.logsumexp(-1, keepdim=True)
        return -sum((table[i, token] for i, token in enumerate(ids[1:])), torch.zeros(()))

    return loss


def class_loss(ids: Sequence[int], label: int) -> Callable[[Any], Tensor]:
    def loss(call: Any) -> Tensor:
        logits = call(input_ids=torch.tensor([list(ids)])).logits[0]
        return logits.logsumexp(-1) - logits[label]

    return loss


def same(sums: MemorySums, name: str, expected: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    """All of one sum's tensors and no others, with the expected values.

    Norms and rotations of `transformers` compute in float32 whatever the model's type.
    """
    assert set(values(sums, name)) == set(expected)
    for tensor, value in expected.items():
        torch.testing.assert_close(
            sums.get(tensor, name).double(), value.double(), rtol=rtol, atol=1e-8, msg=tensor
        )


def values(sums: MemorySums, name: str) -> dict[str, Tensor]:
    """One sum of every tensor that has it."""
    keys = sums.held()
    return {tensor: sums.get(tensor, n) for tensor, n in keys if n == name}
