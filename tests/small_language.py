"""Small language models for evaluators' tests: random ones, and ones that say what they are told.

The tokenizer has one token a byte, so that a text's ids are its bytes plus three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from mergewise.evidence._data import Data
from mergewise.evidence._live import LiveModel
from mergewise.evidence.evaluators import Evaluator, Task
from mergewise.methods import Settings


def byte_tokenizer(bos: bool = True) -> Any:
    """One token a byte; a beginning-of-text token in front if `bos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocab = {piece: i for i, piece in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def random_llama(seed: int = 0, positions: int = 512, bos: bool = True) -> LiveModel:
    """A Llama with random weights over bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=259, max_position_embeddings=positions,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    return LiveModel("random", LlamaForCausalLM(config).eval(), byte_tokenizer(bos))


class Parrot(torch.nn.Module):
    """Puts all its belief on the next byte of `answer(text so far)`, then on the end of text."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__()
        self.answer = answer
        self.config = SimpleNamespace(max_position_embeddings=100_000)

    def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        raise NotImplementedError("a parrot only answers")


def task(kind: type[Evaluator], data: Any, name: str = "a task", **options: Any) -> Evaluator:
    """An evaluator with the defaults of its kind and the given options."""
    values = {key: param.default for key, param in kind.params.items()} | options
    splits: Mapping[str, Data] = data if isinstance(data, dict) else {"test": Data(data)}
    return kind(Task(name, splits, Settings(values)))
