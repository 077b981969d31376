"""Trained masks against masks of the largest changes, on the lab's digits family.

    python -m benchmarks.masks [--folder lab/digits-cpu] [--seeds 3]

Prints the table of docs/masks.md. Masks are trained on labelled training images of each expert's
own task, over all tensors of the body; accuracy is of the test split.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.lab._family import LabTask, Models
from benchmarks.lab._merge import merge
from benchmarks.lab.digits import DOMAINS, Digits
from mergewise._lazy import torch
from mergewise.evidence._inputs import Feeder, Reading, as_data
from mergewise.evidence._mask_top import largest_changes
from mergewise.evidence._mask_training import MaskSettings, density_of, train_mask
from mergewise.evidence.models._names import Names

if TYPE_CHECKING:
    from torch import Tensor

Masks = Mapping[str, "Tensor"]
BODY = "body."
DENSITIES = (0.05, 0.1, 0.3, 0.5, 1.0)
GRAFT = {"bias": 10.0, "noise": 1.0, "l1": 0.0, "keep": "best"}
"""What the guide `grafting` sets."""
TRAINED: Sequence[tuple[int, dict[str, Any]]] = (
    (256, {}),
    (256, {"regularizer": "polarize"}),
    (256, {"l1": 100.0}),
    (256, {"l1": 300.0}),
    (256, {"l1": 1000.0}),
    (256, {"lr": 1e6, "most": 0.05}),
    (64, {}),
    (64, {"l1": 300.0}),
    (16, {}),
    (16, {"l1": 300.0}),
    (256, GRAFT),
    (256, GRAFT | {"lr": 1e8}),
)


class Seed:
    """The models and tasks of one seed."""

    def __init__(self, family: Digits, seed: int) -> None:
        self.family, self.seed = family, seed
        self.models: Models = family.train(seed, Console(stderr=True))
        self.tasks: list[LabTask] = family.tasks(seed)

    def trained(self, examples: int, settings: MaskSettings) -> list[Masks]:
        """A mask for every expert."""
        return [self._trained(name, examples, settings) for name in DOMAINS]

    def largest(self, densities: Sequence[float]) -> list[Masks]:
        """The largest changes of every expert."""
        base = self.models.base
        pairs = zip(self.models.experts.values(), densities, strict=True)
        return [largest_changes(base, expert, list(base), density) for expert, density in pairs]

    def stitched(self, masks: Sequence[Masks], split: str) -> list[float]:
        """Accuracy of the merged model on every task."""
        evidence = [{"mask": {n: m.float() for n, m in own.items()}} for own in masks]
        state = merge(
            list(self.models.experts.values()), "localize_and_stitch", base=self.models.base,
            evidence=evidence, parameters={"localize": "mask"},
        )  # fmt: skip
        return [self._accuracy(state, task, split) for task in self.tasks]

    def alone(self, masks: Sequence[Masks]) -> list[float]:
        """Accuracy of every expert's masked changes on its own task."""
        found = []
        for task, own, expert in zip(self.tasks, masks, self.models.experts.values(), strict=True):
            state = {n: torch.where(own[n], expert[n], b) for n, b in self.models.base.items()}
            found.append(self._accuracy(state, task, "test"))
        return found

    def _trained(self, name: str, examples: int, settings: MaskSettings) -> Masks:
        expert = self.models.experts[name]
        given = self.family.calibration(self.seed, name, expert, examples)
        labels = self.family.labels[self.family.split(self.seed)["training"][:examples]]
        parts = zip(given.batches, labels.split(64), strict=True)
        data = as_data([{**inputs, "label": own} for inputs, own in parts], None, (0, 1), "train")
        base, own = _named(self.models.base), _named(expert)
        feeder = Feeder(data, given.model, Reading(), whole=False)
        found = train_mask(
            given.model, Names(given.model.module), base, own, list(base), feeder, settings
        )
        return {name.removeprefix(BODY): mask for name, mask in found.masks.items()}

    def _accuracy(self, state: Mapping[str, Tensor], task: LabTask, split: str) -> float:
        return task.evaluator.score(self.family.live(state, "masked"), split).metrics[task.metric]


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{BODY}{name}": value for name, value in state.items()}


def rows(seeds: Sequence[Seed]) -> Iterator[list[str]]:
    """Every row of the table, largest changes first."""
    for density in DENSITIES:
        masks = [seed.largest([density] * len(DOMAINS)) for seed in seeds]
        yield [f"largest changes, {density:g}", "none", *_numbers(seeds, masks), "", ""]
    for examples, settings in TRAINED:
        masks = [seed.trained(examples, MaskSettings(**settings)) for seed in seeds]
        sizes = [[density_of(own) for own in each] for each in masks]
        same = [seed.largest(size) for seed, size in zip(seeds, sizes, strict=True)]
        told = ", ".join(f"{key} {value}" for key, value in settings.items()) or "defaults"
        numbers = _numbers(seeds, masks)
        yield [f"trained, {told}", str(examples), *numbers, *_numbers(seeds, same)[1:3]]


def _numbers(seeds: Sequence[Seed], masks: Sequence[Sequence[Masks]]) -> list[str]:
    """Size; one expert on its own task; all stitched; worst task; overlap; validation."""
    pairs = list(zip(seeds, masks, strict=True))
    alone = [statistics.mean(seed.alone(own)) for seed, own in pairs]
    test = [seed.stitched(own, "test") for seed, own in pairs]
    validation = [statistics.mean(seed.stitched(own, "validation")) for seed, own in pairs]
    size = statistics.mean(density_of(own) for each in masks for own in each)
    overlap = statistics.mean(_jaccard(a, b) for each in masks for a, b in combinations(each, 2))
    means = [statistics.mean(each) for each in test]
    return [
        f"{size:.1%}", f"{statistics.mean(alone):.1%}",
        f"{statistics.mean(means):.1%} ± {statistics.stdev(means):.1%}",
        f"{statistics.mean(map(min, test)):.1%}", f"{overlap:.3f}",
        f"{statistics.mean(validation):.1%}",
    ]  # fmt: skip


def _jaccard(one: Masks, other: Masks) -> float:
    either = sum(int((one[n] | other[n]).sum()) for n in one)
    return sum(int((one[n] & other[n]).sum()) for n in one) / max(1, either)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("lab/digits-cpu"))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    family = Digits(None, asked.folder, "cpu", "cpu")
    seeds = [Seed(family, seed) for seed in range(asked.seeds)]
    heads = ["masks", "examples", "size", "own task", "merged", "worst task", "overlap",
             "validation", "own task, largest of same size", "merged, likewise"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|---|" + "---:|" * (len(heads) - 1))
    for row in rows(seeds):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
