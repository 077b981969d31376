"""Family 3, text: a real sentence encoder, and an expert for every set of labelled texts.

The body is all-MiniLM-L6-v2 (see `_encoder`), mean pooling, nothing frozen but the heads. A head is
what CLIP's is (Radford et al. 2021, arXiv 2103.00020): the names of the classes, encoded by the
base, compared by cosine. So the base can do every task a little without having seen one example of
it, and sets without an expert can be scored as well: they are the held-out targets.

Linear heads trained on the base's features were tried and left no room: eight sets, 30 steps of 16
texts each, 120 test texts a set, one seed, mean accuracy in per cent:

    heads         base  experts  average  task vectors at .3, .5, .8
    class names   58.9     85.0     68.9  75.1, 80.7, 81.1
    linear        80.0     82.1     81.0  82.1, 81.8, 79.3
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab import _encoder
from benchmarks.lab._classified import Classified, LabSet, Part, Plan
from benchmarks.lab._evidence import Inputs
from benchmarks.lab._family import Size
from benchmarks.lab._texts import read_texts
from benchmarks.lab._train import Schedule, shuffled
from mergewise._lazy import torch
from mergewise.errors import DataError
from mergewise.evidence.evaluators._heads import Head

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALE = 20.0
"""Of the cosine, as the encoder itself was trained."""
EXPERTS = 6
"""Sets with an expert, the first by name; the others are held out."""
TOKENS: dict[Size, int] = {"fast": 12, "cpu": 32, "gpu": 128}
PLANS: dict[Size, Plan] = {
    "fast": Plan(
        32, 8, 8, 8, 12, Schedule(steps=2, rate=1e-4), Schedule(steps=2, rate=1e-4), 1, 0.5
    ),
    "cpu": Plan(
        2500, 64, 250, 32, 48, Schedule(steps=150, rate=1e-4), Schedule(steps=200, rate=1e-4),
        1, 18.0,
    ),
    "gpu": Plan(
        10_000, 250, 1000, 32, 192, Schedule(steps=600, rate=5e-5),
        Schedule(steps=1200, rate=5e-5), 3, 30.0,
    ),
}  # fmt: skip
_POOL = 8
"""Batches whose texts are sorted by length together: little padding, still by chance."""


class Text(Classified):
    """See the module."""

    name = "text"
    title = "Text: all-MiniLM-L6-v2 and an expert for each set of texts, heads of class names"
    kind: ClassVar[str] = "text_classification"

    def __init__(self, data: Path | None, folder: Path, size: Size, device: str) -> None:
        super().__init__(data, folder, size, device)
        if data is None:
            raise DataError(
                "the text family needs sets of labelled texts; name a folder with --data "
                "(make lab DATA=folder) that holds text_cls/*.jsonl.gz, as docs/lab.md describes"
            )
        self.found = read_texts(data)
        self.plan, self.tokens = PLANS[size], TOKENS[size]

    @property
    def experts(self) -> int:
        return min(EXPERTS, len(self.found))

    def settings(self) -> dict[str, Any]:
        return {
            "encoder": _encoder.WEIGHTS_SHA256,
            "tokens": self.tokens,
            "plan": asdict(self.plan),
            "experts": self.experts,
            "head_scale": SCALE,
            "device": self.device,
            "data": {item.name: item.digest for item in self.found},
        }

    def notes(self) -> list[str]:
        plan = self.plan
        held = ", ".join(item.name for item in self.found[self.experts :])
        return [
            f"base: the weights in {_encoder.PACKAGE} {_encoder.VERSION} (the package says MIT, "
            "the model card in it Apache-2.0), as they are; every parameter is fine-tuned",
            "heads are the class names encoded by the base, cosine times "
            f"{SCALE:g}, frozen, and not merged; texts are cut to {self.tokens} tokens",
            f"an expert: {plan.expert.steps} steps of {plan.batch} texts; joint training: "
            f"{plan.joint.steps} steps of about {plan.joint_batch} over all sets",
            f"at most {plan.training} training, {plan.validation} validation and {plan.test} test "
            "texts a set, drawn anew for each seed; validation is taken from the training part",
            f"held out, no expert was trained for them: {held}" if held else "no set is held out",
            "every expert is a full fine-tuning; none is a LoRA adapter",
        ]

    def split(self, seed: int) -> list[LabSet]:
        plan = self.plan
        found = [i.split(seed, plan.training, plan.validation, plan.test) for i in self.found]
        # texts without an expert are never trained on
        return [
            replace(s, inputs=self.encoded(s.inputs) if i < self.experts else [])
            for i, s in enumerate(found)
        ]

    @cached_property
    def encoder(self) -> Path:
        """The folder of the encoder."""
        from rich.console import Console

        return _encoder.encoder_folder(self.folder / "cache", Console(stderr=True))

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.encoder, local_files_only=True)

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut."""
        made = self.tokenizer(list(texts), truncation=True, max_length=self.tokens)
        return list(made["input_ids"])

    def new_module(self, seed: int) -> nn.Module:
        return encoder_module(self.encoder).to(self.device)

    def features(self, module: nn.Module, parts: Sequence[Part]) -> Tensor:
        return self.embed(module, [found.inputs[i] for found, rows in parts for i in rows.tolist()])

    def embed(self, module: nn.Module, ids: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the last hidden states over the real tokens, [texts, width]."""
        return self.pooled(module, self.padded(ids))

    def pooled(self, module: nn.Module, inputs: Inputs) -> Tensor:
        hidden = module(**inputs).last_hidden_state
        weight = inputs["attention_mask"][..., None].to(hidden)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)

    def padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """A batch as keyword arguments of the encoder."""
        length = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        rows = torch.tensor([[*text, *[pad] * (length - len(text))] for text in ids])
        kept = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in ids])
        return {"input_ids": rows.to(self.device), "attention_mask": kept.to(self.device)}

    def inputs(self, found: LabSet, rows: Tensor) -> dict[str, Tensor]:
        return self.padded([found.inputs[i] for i in rows.tolist()])

    def heads(self, seed: int) -> list[Head]:
        return self._heads

    @cached_property
    def _heads(self) -> list[Head]:
        module = self.new_module(0).eval()
        with torch.no_grad():
            made = [
                self.embed(module, self.encoded([spoken(name) for name in item.names])).cpu()
                for item in self.found
            ]
        unit = [torch.nn.functional.normalize(weight, dim=-1) for weight in made]
        return [Head(weight, normalise=True, scale=SCALE) for weight in unit]

    def rows(self, found: LabSet, size: int, seed: int) -> Iterator[Tensor]:
        chance = torch.Generator().manual_seed(seed)
        for rows in shuffled(len(found.labels), _POOL * size, seed):
            by_length = sorted(rows.tolist(), key=lambda i: len(found.inputs[i]))
            pool = torch.tensor(by_length).split(size)
            yield from (pool[i] for i in torch.randperm(len(pool), generator=chance).tolist())

    def options(self) -> dict[str, Any]:
        return {"pool": "mean", "max_length": self.tokens, "batch_size": 64}


def spoken(name: str) -> str:
    """A class's name as words: ``AddToPlaylist`` is ``add to playlist``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[_\s]+", " ", apart).strip().lower() or name


def encoder_module(folder: Path) -> nn.Module:
    """The encoder without its pooler, which its training did not use."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    state = load_file(folder / "model.safetensors")
    module = AutoModel.from_config(config, add_pooling_layer=False)
    body = {k: v for k, v in state.items() if not k.startswith("pooler.")}
    found = module.load_state_dict(body, strict=False)
    if found.missing_keys or set(found.unexpected_keys) - {"embeddings.position_ids"}:
        raise DataError(
            f"{folder}: its weights are not those of its config: missing "
            f"{found.missing_keys[:3]}, unexpected {found.unexpected_keys[:3]}"
        )
    return module
