"""A small Llama: its tokenizer, its streams of tokens, and its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

END = "<|end|>"
IGNORED = -100
"""The target of a token that is not learned; PyTorch's own mark."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, in elements and tokens.

    Attributes:
        spread: standard deviation of the initial weights. Llama's 0.02 is for widths in the
            thousands and learns markedly slower in the hundreds.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    context: int
    spread: float


@dataclass(frozen=True)
class Stream:
    """Records one after another: token ids and, for each, whether it is learned.

    Attributes:
        ids: int64 [tokens].
        learned: bool [tokens].
    """

    ids: Tensor
    learned: Tensor


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path) -> None:
    """A byte-level BPE tokenizer of at most `vocabulary` pieces, every digit a token of its own.

    It begins every text with the end mark, as every record of a stream is preceded by one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, inner.token_to_id(END))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END
    )
    tokenizer.save_pretrained(folder)


def new_llama(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """An untrained model with separate input and output embeddings and half as many kv heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads // 2,
            max_position_embeddings=4 * shape.context,
            tie_word_embeddings=False,
            initializer_range=shape.spread,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def stream(tokenizer: Any, records: Iterable[str]) -> Stream:
    """`records` as tokens, all learned, an end mark before and after each."""
    pairs = (("", record) for record in records)
    return answers(tokenizer, pairs)


def answers(
    tokenizer: Any, pairs: Iterable[tuple[str, str]], *, unfinished: bool = False
) -> Stream:
    """Prompts and what follows them, of which only the latter is learned.

    Args:
        pairs: a prompt and its answer; encoded apart.
        unfinished: what follows an answer is not learned: neither that it ends nor how it goes on.
    """
    inner, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    texts = [text for pair in pairs for text in pair]
    parts = inner.encode_batch(texts, add_special_tokens=False)
    ids, learned = [end], [False]
    for prompt, answer in zip(parts[::2], parts[1::2], strict=True):
        ids += [*prompt.ids, *answer.ids, end]
        learned += [False] * len(prompt.ids) + [True] * len(answer.ids) + [not unfinished]
    return Stream(torch.tensor(ids), torch.tensor(learned))


def batches(
    streams: Mapping[str, Stream], mix: Mapping[str, float], size: int, context: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: inputs and targets, each int64 [size, context].

    Args:
        streams: by kind of text.
        mix: how often a window is of each kind; need not add up to 1.
        seed: of the choice of kinds and windows.
    """
    chance = torch.Generator().manual_seed(seed)
    names = [name for name, share in mix.items() if share > 0]
    shares = torch.tensor([float(mix[name]) for name in names])
    drawn = [_long(streams[name], context + 1) for name in names]
    while True:
        picks = torch.multinomial(shares, size, replacement=True, generator=chance).tolist()
        windows = [_window(drawn[pick], context, chance) for pick in picks]
        yield torch.stack([w[0] for w in windows]), torch.stack([w[1] for w in windows])


def _window(source: Stream, context: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    start = int(torch.randint(len(source.ids) - context, (1,), generator=chance))
    ids = source.ids[start : start + context + 1]
    learned = source.learned[start + 1 : start + context + 1]
    return ids[:-1], torch.where(learned, ids[1:], IGNORED)


def _long(source: Stream, least: int) -> Stream:
    """`source` as often as it takes to be `least` tokens long."""
    times = -(-least // len(source.ids))
    return Stream(source.ids.repeat(times), source.learned.repeat(times))


def token_loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats: the mean over windows of the mean over each one's learned tokens.

    So a window of questions, where only the short answers are learned, counts as much as prose.
    """
    device = next(module.parameters()).device
    inputs, targets = (part.to(device) for part in batch)
    logits = module(input_ids=inputs, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
    )
    counts = (targets != IGNORED).sum(1).clamp(min=1)
    return (each.sum(1) / counts).mean()
