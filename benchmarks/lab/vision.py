"""Family 2, vision: a small ViT, an expert for every set of 28×28 grey images in a folder.

The body is `transformers`' ViT (after Dosovitskiy et al. 2020, arXiv 2010.11929), made small and
trained from random weights on all sets together, against a random unit vector, a prototype, for
each class of each set. Then prototypes are blurred: every one is moved in a random direction, by
the amount at which the base gets 40 % of the training images right, and stays there. So the base
has features worth keeping and heads that only roughly point at the classes, which is the state of
CLIP and its class names, from which experts are made.

Stopping the base's training at 40 % instead was tried first. Seven sets, 150 or 200 test images a
set, one seed, mean accuracy in per cent (batches of 64 images):

    base                 expert          base  experts  average  task vectors, best of a few scales
    110 steps            300, 2.5e-4     39.8     68.2     39.8  42.1 at .1
    180 steps            300, 5e-4       48.6     74.1     49.6  49.9 at .1
    300 steps, blurred   120, 3e-4       41.9     64.1     45.9  45.9 at 1/7 (not tried below)
    800 steps, blurred   150, 2e-4       40.2     77.0     48.4  54.8 at .3

The last way, with batches of 126 for the base and experts of 200 steps, is the size ``cpu``; on
500 test images a set: base 38.0, experts 80.1, joint 79.2, average 54.2, task vectors 64.3 at .4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab._classified import Classified, LabSet, Part, Plan
from benchmarks.lab._evidence import Inputs
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
ZERO_SHOT = 0.40
"""Training accuracy of the base with its blurred heads, mean over sets."""
LOOK_AT = 200
"""Images of each set by which the blur is chosen."""
_MOST, _HALVINGS = 50.0, 30
"""Blur, in lengths of a prototype, and how often the interval is halved."""


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
    "fast": Schedule(steps=60, rate=3e-3),
    "cpu": Schedule(steps=800, rate=1e-3),
    "gpu": Schedule(steps=6000, rate=3e-4),
}
PLANS: dict[Size, Plan] = {
    "fast": Plan(
        256, 32, 64, 32, 64, Schedule(steps=12, rate=2e-3), Schedule(steps=12, rate=2e-3), 1, 0.5
    ),
    "cpu": Plan(
        10_000, 150, 500, 64, 126,
        Schedule(steps=200, rate=2e-4), Schedule(steps=600, rate=2e-4), 1, 18.0,
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
            "base": {**asdict(self.first), "zero_shot": ZERO_SHOT},
            "head_scale": SCALE,
            "device": self.device,
            "data": {item.name: item.digest for item in self.found},
        }

    def notes(self) -> list[str]:
        plan = self.plan
        count = sum(p.numel() for p in self._scratch().parameters())
        notes = [
            f"ViT of {count:,} parameters, from random weights; every parameter is fine-tuned",
            f"the base is trained on all sets for {self.first.steps} steps of about "
            f"{plan.joint_batch} images against random prototypes, which are then blurred until "
            f"it gets {ZERO_SHOT:.0%} of the training images right, frozen, and not merged",
            f"an expert: {plan.expert.steps} steps of {plan.batch} images; joint training from the "
            f"same base: {plan.joint.steps} steps of about {plan.joint_batch} over all sets",
            f"at most {plan.training} training, {plan.validation} validation and {plan.test} test "
            "images a set, drawn anew for each seed; validation is taken from the training part",
            "every expert is a full fine-tuning; none is a LoRA adapter",
        ]
        if self.left_out:
            notes.append(f"left out, not {SIDE}x{SIDE} grey: {', '.join(self.left_out)}")
        return notes

    def split(self, seed: int) -> list[LabSet]:
        plan = self.plan
        return [i.split(seed, plan.training, plan.validation, plan.test) for i in self.found]

    def prototypes(self, seed: int) -> list[Tensor]:
        """What the base is trained against: unit vectors [classes, width] for each set."""
        return self._directions(1000 + seed)

    def heads(self, seed: int) -> list[Head]:
        kept = self.kept(seed, "heads", lambda: self._blurred(seed))
        return [_head(kept[item.name]) for item in self.found]

    def _blurred(self, seed: int) -> dict[str, Tensor]:
        """The prototypes with as much noise as leaves the base `ZERO_SHOT` right."""
        clean, noise = self.prototypes(seed), self._directions(2000 + seed)
        known = self._known(seed)

        def moved(blur: float) -> list[Tensor]:
            return [c + blur * n for c, n in zip(clean, noise, strict=True)]

        low, high = 0.0, _MOST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if _accuracy(moved(middle), known) > ZERO_SHOT:
                low = middle
            else:
                high = middle
        names = [item.name for item in self.found]
        unit = [torch.nn.functional.normalize(weight, dim=-1) for weight in moved(low)]
        return dict(zip(names, unit, strict=True))

    def _known(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """The base's features of each set's first training images, and their labels."""
        from rich.console import Console

        module = self.live(self.kept_base(seed, Console(stderr=True)), "base").module
        parts = [(found, torch.arange(len(found.labels))[:LOOK_AT]) for found in self.sets(seed)]
        with torch.no_grad():
            return [(self.features(module, [p]).cpu(), p[0].labels[p[1]]) for p in parts]

    def _directions(self, seed: int) -> list[Tensor]:
        chance = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(len(i.names), self.shape.hidden, generator=chance) for i in self.found]
        return [torch.nn.functional.normalize(weight, dim=-1) for weight in drawn]

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
        scaled = torch.cat([self.inputs(*part)["pixel_values"] for part in parts])
        return self.pooled(module, {"pixel_values": scaled})

    def pooled(self, module: nn.Module, inputs: Inputs) -> Tensor:
        return module(**inputs).last_hidden_state.mean(dim=1)

    def inputs(self, found: LabSet, rows: Tensor) -> dict[str, Tensor]:
        pixels = found.inputs[rows][:, None].to(self.device)
        return {"pixel_values": (pixels.float() / 255 - MEAN) / SPREAD}

    def base(self, seed: int, console: Console) -> State:
        module = self.new_module(seed)
        heads = [_head(weight) for weight in self.prototypes(seed)]
        pairs = list(zip(self.sets(seed), heads, strict=True))
        size = self.plan.joint_batch
        self.fit(module, pairs, size, self.first, "base", seed=seed, console=console)
        return module.state_dict()


def _head(weight: Tensor) -> Head:
    return Head(weight, normalise=True, scale=SCALE)


def _accuracy(weights: Sequence[Tensor], known: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over sets of the share of examples whose class has the nearest direction."""
    shares = [
        float((_head(weight).logits(features).argmax(dim=-1) == labels).float().mean())
        for weight, (features, labels) in zip(weights, known, strict=True)
    ]
    return math.fsum(shares) / len(shares)
