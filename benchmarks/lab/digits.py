"""Digits: eight views of small images, one small network, frozen heads. Ten minutes on two cores.

The family after section 6 of the specification's pilot: every task sees the same 8×8 digits
through its own fixed change of pixels and has its own frozen head of random prototypes, as CLIP
has one of class names, which is not merged. The base is trained on all tasks, but only until it
gets about 37 % right: where it is much better than that, plain averages fall below it, unlike with
models people merge, and the comparison says nothing. The gates hold this to account.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab._evidence import Calibration, Inputs, headed
from benchmarks.lab._family import Family, Gate, LabTask, Models, Size, State
from benchmarks.lab._images import records
from benchmarks.lab._small import SIDE, small_images
from benchmarks.lab._train import Schedule, kept_state, second_moments, shuffled, train
from mergewise._lazy import torch
from mergewise.errors import EvidenceError
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators import Task, get_evaluator
from mergewise.evidence.evaluators._heads import Head, save_head
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

WIDTH, INNER, BLOCKS = 96, 192, 4
SCALE = 10.0
MEAN, SPREAD = 0.3, 0.37
ENOUGH = 0.37
"""The base's training accuracy at which its training stops: the middle of the gate."""


def _permuted(x: Tensor) -> Tensor:
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    return x.flatten(1)[:, order].view(-1, SIDE, SIDE)


DOMAINS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "upright": lambda x: x,
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "rot180": lambda x: x.rot90(2, (1, 2)),
    "mirrored": lambda x: x.flip(2),
    "flipped": lambda x: x.flip(1),
    "transposed": lambda x: x.transpose(1, 2),
    "inverted": lambda x: 255 - x,
    "permuted": _permuted,
}
"""Changes of images, uint8 [n, 8, 8] to the same."""

STEPS: Mapping[Size, int] = {"fast": 200, "cpu": 300, "gpu": 300}
BATCH, JOINT_BATCH = 64, 256
BASE = Schedule(steps=200, rate=3e-4, warm_up=0.0, floor=1.0)
TEST, VALIDATION = 0.28, 0.165
"""Shares of the images; of scikit-learn's 1797 that leaves 998 for training."""


class Digits(Family):
    """See the module."""

    name = "digits"
    title = "Digits: eight views of 8×8 images, a residual MLP, frozen prototype heads"
    seeds: ClassVar[int] = 3
    budget: ClassVar[float] = 10.0
    calibrating = 256
    optimised = True
    threads = 1  # more threads would wait for one another longer than they compute

    def __init__(self, data: Path | None, folder: Path, size: Size, device: str) -> None:
        super().__init__(data, folder, size, "cpu")  # too small for anything else to be faster
        self.source, self.images, self.labels = small_images(data)
        self.classes = int(self.labels.max()) + 1
        self._module = new_module(0)

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes())
        return {
            "images": self.source,
            "sha256": digest.hexdigest(),
            "domains": list(DOMAINS),
            "network": {"width": WIDTH, "inner": INNER, "blocks": BLOCKS, "head_scale": SCALE},
            "base": {"rate": BASE.rate, "batch": BATCH, "until_accuracy": ENOUGH},
            "expert": {"rate": 3e-4, "batch": BATCH, "steps": STEPS[self.size]},
            "joint": {"rate": 3e-4, "batch": JOINT_BATCH, "steps": STEPS[self.size]},
            "split": {k: len(v) for k, v in self.split(0).items()},
        }

    def notes(self) -> list[str]:
        parts = ", ".join(f"{len(rows)} {name}" for name, rows in self.split(0).items())
        return [
            f"images: {self.source}; {parts} images, drawn anew for each seed, the same rows "
            "for every task",
            f"the base is trained on all tasks until it gets {ENOUGH:.0%} of the training images "
            "right, at most 200 steps; heads are random, frozen, and not merged",
            f"joint training takes as many steps as one expert, of {JOINT_BATCH} images over all "
            f"tasks instead of {BATCH} of one",
        ]

    def split(self, seed: int) -> dict[str, Tensor]:
        """Rows of training, validation and test, apart, as int64."""
        count = len(self.labels)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        test, validation = round(TEST * count), round(VALIDATION * count)
        train_, val, held = order.split([count - test - validation, validation, test])
        return {"training": train_, "validation": val, "test": held}

    def heads(self, seed: int) -> Tensor:
        """Prototypes [tasks, classes, width] of length one."""
        chance = torch.Generator().manual_seed(1000 + seed)
        drawn = torch.randn(len(DOMAINS), self.classes, WIDTH, generator=chance)
        return torch.nn.functional.normalize(drawn, dim=-1)

    def tasks(self, seed: int) -> list[LabTask]:
        split, heads = self.split(seed), self.heads(seed)
        kind = get_evaluator("image_classification")
        tasks = []
        for i, (name, change) in enumerate(DOMAINS.items()):
            head = self.home(seed) / f"head_{name}.safetensors"
            head.parent.mkdir(parents=True, exist_ok=True)
            save_head(head, heads[i], normalise=True, scale=SCALE)
            data = {
                part: Data(records(change(self.images[rows]), self.labels[rows]))
                for part, rows in split.items()
                if part != "training"
            }
            options = Settings({"mean": MEAN, "std": SPREAD, "batch_size": 1024})
            tasks.append(LabTask(name, kind(Task(name, data, options, head))))
        return tasks

    def train(self, seed: int, console: Console) -> Models:
        work = _Training(self, seed, console)
        kept = functools.partial(self._kept, seed)
        base = kept("base", work.base)
        experts = {
            name: kept(name, functools.partial(work.tuned, base, [i], BATCH, name))
            for i, name in enumerate(DOMAINS)
        }
        every = range(len(DOMAINS))
        joint = kept("joint", lambda: work.tuned(base, every, JOINT_BATCH, "joint"))
        return Models(base, experts, joint)

    def _kept(self, seed: int, name: str, make: Callable[[], dict[str, Tensor]]) -> State:
        return kept_state(self.home(seed) / f"{name}.safetensors", self.fingerprint(seed), make)

    def steps(self, expert: str) -> int:
        return STEPS[self.size]

    def moments(self, seed: int, expert: str) -> dict[str, Tensor]:
        """By training the expert once more; seconds, and no kept model has to be made anew."""
        from rich.console import Console

        work = _Training(self, seed, Console(stderr=True, quiet=True))
        models = self.train(seed, work.console)
        made: dict[str, Tensor] = {}
        again = work.tuned(models.base, [list(DOMAINS).index(expert)], BATCH, expert, moments=made)
        if not all(torch.equal(again[name], kept) for name, kept in models.experts[expert].items()):
            raise EvidenceError(
                f"{expert}, trained once more, differs from the model in {self.home(seed)}, which "
                "another machine or torch made; delete the folder to train all models here"
            )
        return made

    def live(self, state: State, name: str) -> LiveModel:
        self._module.load_state_dict(dict(state))
        return LiveModel(name, self._module)

    def calibration(self, seed: int, expert: str, state: State, examples: int) -> Calibration:
        index = list(DOMAINS).index(expert)
        rows = self.split(seed)["training"][:examples]
        images = (DOMAINS[expert](self.images[rows]).float() / 255 - MEAN) / SPREAD
        module = new_module(0)
        module.load_state_dict(dict(state))
        head = Head(self.heads(seed)[index], normalise=True, scale=SCALE)
        batches = [{"images": part} for part in images.split(64)]
        return Calibration(LiveModel(expert, headed(module, head, _features)), batches, "body.")

    def gates(self, means: Mapping[str, float]) -> list[Gate]:
        zero, tuned = means["pretrained"], means["fine-tuned"]
        gates = [Gate(f"zero-shot is 30 to 45 %: {zero:.1%}", 0.30 <= zero <= 0.45)]
        if (average := means.get("linear")) is not None:
            text = "fine-tuned is 30 points or more above the average"
            gates.append(Gate(f"{text}: {tuned:.1%} - {average:.1%}", tuned - average >= 0.30))
        return gates


class _Training:
    """Makes the models of one seed."""

    def __init__(self, family: Digits, seed: int, console: Console) -> None:
        rows = family.split(seed)["training"]
        images = torch.stack([change(family.images[rows]) for change in DOMAINS.values()])
        self.images = (images.float() / 255 - MEAN) / SPREAD
        self.labels = family.labels[rows]
        self.heads = family.heads(seed)
        self.steps = STEPS[family.size]
        self.seed, self.console = seed, console

    def base(self) -> dict[str, Tensor]:
        module = new_module(self.seed)
        batches = self._until_enough(module, self._batches(range(len(DOMAINS)), BATCH, 0))
        train(module, batches, self._loss, BASE, label="base", console=self.console)
        return module.state_dict()

    def tuned(
        self,
        base: State,
        tasks: Sequence[int],
        batch: int,
        name: str,
        moments: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Fine-tuned weights; Adam's second moments are put into `moments`."""
        module = new_module(self.seed)
        module.load_state_dict(dict(base))
        schedule = Schedule(steps=self.steps, rate=3e-4)
        label = f"seed {self.seed}: {name}"
        batches = self._batches(tasks, batch, 1 + tasks[0])

        def finished(optimizer: torch.optim.AdamW) -> None:
            if moments is not None:
                moments.update(second_moments(module, optimizer))

        train(
            module, batches, self._loss, schedule, label=label, console=self.console,
            finished=finished,
        )  # fmt: skip
        return module.state_dict()

    def _batches(self, tasks: Sequence[int], size: int, stream: int) -> Iterator[Any]:
        seed = 100 * self.seed + stream
        chance = torch.Generator().manual_seed(seed)
        mine = torch.tensor(list(tasks))
        for rows in shuffled(len(self.labels), size, seed):
            yield mine[torch.randint(len(mine), (size,), generator=chance)], rows

    def _until_enough(self, module: nn.Module, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch
            if self._accuracy(module) >= ENOUGH:
                return

    def _loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        tasks, rows = batch
        features = torch.nn.functional.normalize(module(self.images[tasks, rows]), dim=-1)
        logits = SCALE * (self.heads[tasks] @ features[:, :, None])[:, :, 0]
        return torch.nn.functional.cross_entropy(logits, self.labels[rows])

    @torch.no_grad()
    def _accuracy(self, module: nn.Module) -> float:
        """Over all tasks, on the first 300 training images."""
        features = module(self.images[:, :300].flatten(0, 1)).view(len(DOMAINS), -1, WIDTH)
        guesses = (features @ self.heads.transpose(1, 2)).argmax(dim=-1)
        return float((guesses == self.labels[:300]).float().mean())


def new_module(seed: int) -> nn.Module:
    """A residual MLP from images [n, ...] of 64 pixels to features [n, 96]; 156,000 parameters."""
    from torch import nn

    torch.manual_seed(seed)
    blocks = [_residual() for _ in range(BLOCKS)]
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, WIDTH), *blocks, nn.LayerNorm(WIDTH))


def _residual() -> nn.Module:
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    return Residual(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)
    )


def _features(module: nn.Module, inputs: Inputs) -> Tensor:
    return module(inputs["images"])
