"""Small language models for evaluators' tests: random ones, and ones that say what they are told.

The tokenizer has one token a byte, so that a text's ids are its bytes plus three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mergewise.evidence._data import Data
from mergewise.evidence.evaluators import Evaluator, Task
from mergewise.evidence.models._live import LiveModel
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
    """Stands in for a model that continues a prompt with `answer(prompt)`, byte by byte."""

    def __init__(self, answer: Callable[[str], str], tokenizer: Any) -> None:
        super().__init__()
        self.answer, self.tokenizer = answer, tokenizer

    def generate(
        self, input_ids: Any, attention_mask: Any, generation_config: Any, **_: Any
    ) -> torch.Tensor:
        """Rows of prompt, answer and end-of-text tokens."""
        most = generation_config.max_new_tokens
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            rows.append(self.tokenizer(self.answer(prompt))["input_ids"][1 : most + 1])
        longest = max(map(len, rows))
        ends = [row + [2] * (longest - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(ends, dtype=torch.int64)], 1)


def parrot(answer: Callable[[str], str]) -> LiveModel:
    """A model that continues a prompt with `answer(prompt)`."""
    tokenizer = byte_tokenizer()
    return LiveModel("parrot", Parrot(answer, tokenizer), tokenizer)


def task(kind: type[Evaluator], data: Any, name: str = "a task", **options: Any) -> Evaluator:
    """An evaluator with the defaults of its kind and the given options."""
    values = {key: param.default for key, param in kind.params.items()} | options
    splits: Mapping[str, Data] = data if isinstance(data, dict) else {"test": Data(data)}
    return kind(Task(name, splits, Settings(values)))
