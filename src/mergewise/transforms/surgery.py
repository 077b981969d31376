"""Representation Surgery: features of a merged encoder, bent towards each task's expert."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, versions
from mergewise.errors import DataError, IncompatibleModelsError, TaskError, TransformError
from mergewise.evidence.evaluators import Batch, Surgery, features, surgery_file
from mergewise.methods import Param, Settings
from mergewise.transforms._base import Ask, Changes, Transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed, Role

POOLS = ("cls", "mean", "pooler")


@dataclass(frozen=True)
class Trained:
    """A surgery and what its training did.

    Attributes:
        before: mean absolute distance from the expert's features without it, over all examples.
        after: the same with it.
    """

    surgery: Surgery
    before: float
    after: float


class RepresentationSurgery(Transform):
    """Representation Surgery."""

    name = "surgery"
    summary = "for each task a small correction of the features, in a file beside the weights"
    data = "unlabelled"
    models = "the expert of each task, labelled with the task's name"
    by_label = True
    source = "Representation Surgery, Yang et al. 2024, arXiv 2402.02705"
    variant = (
        "the encoder is frozen, and features are computed once; batches are drawn by shuffling. "
        "D's start (uniform within 1/sqrt(width)), rank, rate, batch and loss are those of the "
        "authors' code (EnnengYang/RepresentationSurgery 5df3f4e), which takes 500 steps. The "
        "paper trains on the stream of test inputs"
    )
    params = {
        "rank": Param(int, 16, "rows of D", ge=1),
        "steps": Param(int, 1000, "steps of Adam", ge=1),
        "rate": Param(float, 1e-3, "learning rate", gt=0),
        "batch": Param(int, 16, "examples of a step", ge=1),
        "pool": Param(
            str, None, "features of a body: first token, mean over tokens, or its pooler; by "
            "default cls for images and mean for texts, as evaluation tasks take them",
            choices=POOLS,
        ),
        "seed": Param(int, 0, "of D and of the batches", ge=0),
    }  # fmt: skip

    def role(self, checkpoint: Checkpoint) -> Role:
        """Features come from a body; heads are the tasks' own."""
        return "body"

    def run(self, ask: Ask) -> Changes:
        names = {label: _file(label) for label in ask.models}
        model = ask.open(ask.checkpoint, "body")
        fed = {label: ask.batches(model, label, whole=True) for label in ask.models}
        pools = {label: ask.settings.pool or _pool(batches) for label, batches in fed.items()}
        merged = {x: _features(ask, model, fed[x], pools[x], x) for x in ask.models}
        files, notes, numbers = {}, [], {}
        for label, checkpoint in ask.models.items():
            expert = ask.open(checkpoint, "body")
            wanted = _features(ask, expert, fed[label], pools[label], label)
            tick = partial(ask.progress, f"training {label}")
            done = train(merged[label], wanted, ask.settings, pools[label], tick)
            record = _record(ask, label, model, expert, done)
            files[names[label]] = replace(done.surgery, metadata=record).file()
            numbers[label] = {"before": done.before, "after": done.after, "examples": len(wanted)}
            notes.append(
                f"{label}: features were {done.before:.4g} from the expert's in mean absolute "
                f"distance, now {done.after:.4g}, on the {len(wanted)} examples it was trained on"
            )
        return Changes(files=files, notes=tuple(notes), numbers=numbers)

    @classmethod
    def describe(cls) -> str:
        return (
            "For each task, features z of the merged encoder become z - U ReLU(D z), with D "
            "[rank, width], and U [width, rank], which starts at zero.\n"
            "U and D minimise the mean of |z - U ReLU(D z) - z_expert| over unlabelled inputs of "
            "the task.\n"
            "The weights stay as they are. An evaluation task with `surgery: NAME` and a head "
            "applies surgery.NAME.safetensors of the model's folder."
        )


def _file(label: str) -> str:
    try:
        return surgery_file(label)
    except TaskError as error:
        raise TransformError(f"{error}; label the model: --model NAME=PATH") from None


def _pool(batches: Sequence[Fed]) -> str:
    return "cls" if "pixel_values" in batches[0].inputs else "mean"


def _features(ask: Ask, model: LiveModel, batches: Sequence[Fed], pool: str, label: str) -> Tensor:
    """[examples, width], on the CPU."""
    total, made = 0, []
    for fed in batches:
        rows = range(total, total + len(fed.keys))
        made.append(Batch(rows, fed.inputs, fed.mask))
        total += len(rows)
    try:
        stage = f"features of {model.name} on {label}"
        return features(model, made, pool, total, partial(ask.progress, stage))
    except TaskError as error:
        raise TransformError(str(error)) from None


def train(
    merged: Tensor,
    wanted: Tensor,
    settings: Settings,
    pool: str = "cls",
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """Train one task's surgery on features.

    Args:
        merged: of the merged model, float32 [examples, width].
        wanted: of the expert on the same examples.
        settings: ``rank``, ``steps``, ``rate``, ``batch``, ``seed``.

    Raises:
        IncompatibleModelsError: if the widths differ.
        DataError: if training diverged.
    """
    if merged.shape != wanted.shape:
        raise IncompatibleModelsError(
            f"features of the merged model are {list(merged.shape)}, the expert's "
            f"{list(wanted.shape)}; models of one architecture are expected"
        )
    chance = torch.Generator().manual_seed(settings.seed)
    width = merged.shape[1]
    down = (torch.rand(settings.rank, width, generator=chance) * 2 - 1) / math.sqrt(width)
    surgery = Surgery(down.requires_grad_(), torch.zeros(width, settings.rank).requires_grad_(),
                      pool)  # fmt: skip
    adam = torch.optim.Adam([surgery.down, surgery.up], lr=settings.rate)
    with torch.enable_grad():
        for step, rows in enumerate(_batches(len(merged), settings.batch, settings.steps, chance)):
            adam.zero_grad()
            loss: Any = _loss(surgery, merged[rows], wanted[rows])
            loss.backward()
            adam.step()
            tick(step + 1, settings.steps)
    with torch.no_grad():
        after = float(_loss(surgery, merged, wanted))
        before = float((merged - wanted).abs().mean())
    if not math.isfinite(after):
        raise DataError("training diverged; try a lower --set rate=1e-4")
    done = replace(surgery, down=surgery.down.detach(), up=surgery.up.detach())
    return Trained(done, before, after)


def _loss(surgery: Surgery, merged: Tensor, wanted: Tensor) -> Tensor:
    return (surgery.correct(merged) - wanted).abs().mean()


def _batches(examples: int, size: int, steps: int, chance: torch.Generator) -> Any:
    """Rows of each step: the examples in a new order each time they are used up."""
    rows = torch.empty(0, dtype=torch.int64)
    size = min(size, examples)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(examples, generator=chance)
        yield rows[:size]
        rows = rows[size:]


def _record(
    ask: Ask, label: str, model: LiveModel, expert: LiveModel, done: Trained
) -> dict[str, str]:
    data = ask.data[label if label in ask.data else ""]
    record = {
        "checkpoint": {"name": model.name, "fingerprint": model.fingerprint},
        "expert": {"name": expert.name, "fingerprint": expert.fingerprint},
        "data": {"name": data.name.rpartition("/")[2], "sha256": data.fingerprint()},
        "settings": vars(ask.settings),
        "loss": {"before": done.before, "after": done.after},
        "versions": versions(),
    }
    return {"task": label, "surgery": json.dumps(record, sort_keys=True)}
