"""Small classifiers, tokenizers and tasks for the tests of classification."""

from pathlib import Path
from typing import Any

import torch

from mergewise.evidence._data import Data
from mergewise.evidence.evaluators import Evaluator, Task, get_evaluator
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Settings

WORDS = ["the", "a", "good", "bad", "film", "plot", "acting", "was", "is", "very", "dull", "fine",
         "not", "story", "end", "start"]  # fmt: skip


def task(kind: str, records: Any, head: Path | None = None, **options: Any) -> Evaluator:
    """An evaluator over `records` as split ``test``, with the kind's defaults."""
    cls = get_evaluator(kind)
    complete = {name: param.default for name, param in cls.params.items()} | options
    data = records if isinstance(records, Data) else Data(records)
    return cls(Task("t", {"test": data}, Settings(complete), head))


def tokenizer() -> Any:
    """Words into ids, ``[CLS] … [SEP]`` around them, types 0 and 1 for the texts of a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert(classes: int | None = 3, **more: Any) -> torch.nn.Module:
    """A random BERT; a whole classifier, or a body if `classes` is None."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, initializer_range=0.5,
        num_labels=classes or 2, **more,
    )  # fmt: skip
    return (BertModel if classes is None else BertForSequenceClassification)(config).eval()


def vit(classes: int | None = 3, channels: int = 1, size: int = 8) -> torch.nn.Module:
    """A random ViT for images of `size`."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=size, patch_size=4, num_channels=channels, initializer_range=0.5,
        num_labels=classes or 2,
    )  # fmt: skip
    return (ViTModel if classes is None else ViTForImageClassification)(config).eval()


def live(module: torch.nn.Module, words: bool = False, **more: Any) -> LiveModel:
    return LiveModel("tiny", module, tokenizer=tokenizer() if words else None, **more)


def texts(count: int = 11) -> list[dict[str, Any]]:
    """Texts of 1 to 12 words."""
    draw = torch.Generator().manual_seed(1)

    def some(most: int) -> str:
        length = int(torch.randint(1, most, (1,), generator=draw))
        chosen = torch.randint(len(WORDS), (length,), generator=draw)
        return " ".join(WORDS[i] for i in chosen.tolist())

    return [{"text": some(13), "second": some(6), "label": i % 3} for i in range(count)]


def images(count: int = 7, size: int = 8, channels: int = 0) -> list[dict[str, Any]]:
    """Random uint8 images, grey without a channel axis if `channels` is 0."""
    draw = torch.Generator().manual_seed(2)
    shape = (size, size, channels) if channels else (size, size)
    return [
        {
            "image": torch.randint(256, shape, generator=draw, dtype=torch.uint8).numpy(),
            "label": i % 3,
        }
        for i in range(count)
    ]
