"""The texts of `examples/data`, and what turns them into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.demo._settings import DOMAINS
from mergewise.errors import MergewiseError

if TYPE_CHECKING:
    from torch import Tensor

END = "<|end|>"
SEPARATOR = "\n%%\n"


def find_examples() -> Path:
    """The `examples` folder of the checkout this package runs from, or of the current folder.

    Raises:
        MergewiseError: if neither has one; the wheel carries no texts.
    """
    for folder in (*Path(__file__).resolve().parents, Path.cwd()):
        if (folder / "examples" / "data" / "maths.train.txt").is_file():
            return folder / "examples"
    raise MergewiseError(
        "the demo's texts (examples/data) were not found: they are part of the source repository, "
        "not of the installed package; clone the repository and run `make demo` there"
    )


def read_texts(examples: Path, part: str) -> dict[str, str]:
    """The text of each kind; `part` is ``train`` or ``heldout``."""
    folder = examples / "data"
    return {name: (folder / f"{name}.{part}.txt").read_text("utf-8") for name in DOMAINS}


def train_tokenizer(texts: Mapping[str, str], vocabulary: int, context: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocabulary` pieces, as a fast Transformers one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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
    records = [record for name in sorted(texts) for record in texts[name].split(SEPARATOR)]
    inner.train_from_iterator(records, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, model_max_length=context
    )


def encode(tokenizer: Any, text: str) -> Tensor:
    """One stream of token ids (int64, 1-D): an end mark, then each record and its end mark."""
    import torch

    ids = [tokenizer.eos_token_id]
    for record in text.split(SEPARATOR):
        ids += tokenizer.backend_tokenizer.encode(record).ids
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)
