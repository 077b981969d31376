"""Family 2, vision: a small ViT, an expert for every set of 28×28 grey images in a folder.

The body is `transformers`' ViT, from random weights. It is trained on all sets together, but only
until it gets about 40 % of the training images right, the region in which merging was studied on
CLIP: a base that knows its tasks well leaves experts nothing to add, and averages fall below it.
Each set has a frozen head of random prototypes on the unit sphere, as CLIP has one of class names.
The network is that of Dosovitskiy et al. 2020 (arXiv 2010.11929), made small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab._classified import Classified, LabSet, Part, Plan
from benchmarks.lab._family import Size, State
from benchmarks.lab._images import SIDE, read_images
from benchmarks.lab._train import Schedule
from mergewise._lazy import torch
from mergewise.errors import DataError
from mergewise.evidence.evaluators._heads import Head

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

SCALE = 16.0
"""Of the cosine between features and prototypes."""
MEAN, SPREAD = 0.5, 0.5
ENOUGH = 0.42
"""Training accuracy, mean over sets, at which training of the base stops."""
LOOK_EVERY, LOOK_AT = 5, 64
"""Steps between looks at that accuracy, and images of each set looked at."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the ViT; 0.8 million parameters by default."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 7


SHAPES: dict[Size, Shape] = {
    "fast": Shape(32, 2, 2, 14),
    "cpu": Shape(),
    "gpu": Shape(384, 12, 6, 4),
}
BASES: dict[Size, Schedule] = {
    "fast": Schedule(steps=40, rate=2e-3, floor=1.0),
    "cpu": Schedule(steps=400, rate=1e-3, floor=1.0),
    "gpu": Schedule(steps=2000, rate=3e-4, floor=1.0),
}
PLANS: dict[Size, Plan] = {
    "fast": Plan(
        256, 32, 64, 32, 64, Schedule(steps=12, rate=2e-3), Schedule(steps=12, rate=2e-3), 1, 0.5
    ),
    "cpu": Plan(
        10_000, 150, 500, 64, 126,
        Schedule(steps=500, rate=5e-4), Schedule(steps=1000, rate=5e-4), 1, 18.0,
    ),
    "gpu": Plan(
        60_000, 1000, 10_000, 256, 1024,
        Schedule(steps=3000, rate=2e-4), Schedule(steps=5000, rate=2e-4), 3, 30.0,
    ),
}  # fmt: skip


class Vision(Classified):
    """See the module."""

    name = "vision"
    title = "Vision: a small ViT and an expert for each set of images, frozen prototype heads"
    kind: ClassVar[str] = "image_classification"

    def __init__(self, data: Path | None, folder: Path, size: Size, device: str) -> None:
        super().__init__(data, folder, size, device)
        if data is None:
            raise DataError(
                "the vision family needs sets of images; name a folder with --data "
                "(make lab DATA=folder) that holds images/*.npz, as docs/lab.md describes"
            )
        self.found, self.left_out = read_images(data)
        self.plan, self.shape, self.first = PLANS[size], SHAPES[size], BASES[size]

    @property
    def experts(self) -> int:
        return len(self.found)

    def settings(self) -> dict[str, Any]:
        return {
            "shape": asdict(self.shape),
            "plan": asdict(self.plan),
            "base": {**asdict(self.first), "until_accuracy": ENOUGH},
            "head_scale": SCALE,
            "device": self.device,
            "data": {item.name: item.digest for item in self.found},
        }

    def notes(self) -> list[str]:
        plan = self.plan
        count = sum(p.numel() for p in self._scratch().parameters())
        notes = [
            f"ViT of {count:,} parameters, from random weights; every parameter is fine-tuned",
            f"the base is trained on all sets until it gets {ENOUGH:.0%} of the training images "
            f"right, at most {self.first.steps} steps; heads are random prototypes, frozen, and "
            "not merged",
            f"an expert: {plan.expert.steps} steps of {plan.batch} images; joint training from the "
            f"same base: {plan.joint.steps} steps of about {plan.joint_batch} over all sets",
            f"at most {plan.training} training, {plan.validation} validation and {plan.test} test "
            "images a set, drawn anew for each seed; validation is taken from the training part",
            "LoRA experts are not part of it yet: adapters cannot be inputs of a merge",
        ]
        if self.left_out:
            notes.append(f"left out, not {SIDE}x{SIDE} grey: {', '.join(self.left_out)}")
        return notes

    def split(self, seed: int) -> list[LabSet]:
        plan = self.plan
        return [i.split(seed, plan.training, plan.validation, plan.test) for i in self.found]

    def heads(self, seed: int) -> list[Head]:
        chance = torch.Generator().manual_seed(1000 + seed)
        drawn = [torch.randn(len(i.names), self.shape.hidden, generator=chance) for i in self.found]
        unit = [torch.nn.functional.normalize(weight, dim=-1) for weight in drawn]
        return [Head(weight, normalise=True, scale=SCALE) for weight in unit]

    def options(self) -> dict[str, Any]:
        return {"mean": MEAN, "std": SPREAD, "pool": "mean", "batch_size": 128}

    def new_module(self, seed: int) -> nn.Module:
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(seed)
        config = ViTConfig(
            hidden_size=self.shape.hidden,
            num_hidden_layers=self.shape.layers,
            num_attention_heads=self.shape.heads,
            intermediate_size=4 * self.shape.hidden,
            image_size=SIDE,
            patch_size=self.shape.patch,
            num_channels=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return ViTModel(config, add_pooling_layer=False).to(self.device)

    def features(self, module: nn.Module, parts: Sequence[Part]) -> Tensor:
        pixels = torch.cat([found.inputs[rows] for found, rows in parts])[:, None].to(self.device)
        scaled = (pixels.float() / 255 - MEAN) / SPREAD
        return module(pixel_values=scaled).last_hidden_state.mean(dim=1)

    def base(self, seed: int, console: Console) -> State:
        module, sets = self.new_module(seed), self.sets(seed)
        pairs = list(zip(sets, self.heads(seed), strict=True))
        batches = self._until_enough(module, self.batches(sets, self.plan.joint_batch, seed), seed)
        self.fit(
            module, pairs, 0, self.first, "base", seed=seed, console=console, batches=batches
        )  # fmt: skip
        return module.state_dict()

    def _until_enough(
        self, module: nn.Module, batches: Iterator[Any], seed: int
    ) -> Iterator[Any]:  # fmt: skip
        for step, batch in enumerate(batches, 1):
            yield batch
            if step % LOOK_EVERY == 0 and self._accuracy(module, seed) >= ENOUGH:
                return

    @torch.no_grad()
    def _accuracy(self, module: nn.Module, seed: int) -> float:
        """Mean over sets of the share right among the first training images."""
        parts = [(found, torch.arange(len(found.labels))[:LOOK_AT]) for found in self.sets(seed)]
        features = self.features(module, parts).split([len(rows) for _, rows in parts])
        shares = [
            float((head.logits(mine).argmax(dim=-1).cpu() == found.labels[rows]).float().mean())
            for head, mine, (found, rows) in zip(self.heads(seed), features, parts, strict=True)
        ]
        return math.fsum(shares) / len(shares)
