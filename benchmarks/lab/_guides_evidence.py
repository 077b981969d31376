"""Statistics of models on an expert's own examples, on another's, or on noise; kept as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.lab._bare import bare
from benchmarks.lab._evidence import Calibration, Inputs, evidence_mark
from benchmarks.lab._family import Family, Models, State
from benchmarks.lab._guides_arms import EXAMPLES, NOISE, OTHER
from mergewise._lazy import torch
from mergewise.checkpoint import make_folder
from mergewise.errors import MergewiseError
from mergewise.evidence import Evidence, LiveModel, collect, load_evidence

if TYPE_CHECKING:
    from torch import Tensor

BASE = "base"
Options = Mapping[str, Mapping[str, Any]]
NONE: Options = {}


@dataclass
class Shelf:
    """The evidence of one seed's models; what is not there yet is collected.

    Attributes:
        tokens: what was collected on, by kind of calibration: examples and tokens in words.
    """

    family: Family
    seed: int
    models: Models

    def of(
        self, expert: str, calibration: str, statistics: Sequence[str], options: Options = NONE
    ) -> list[Evidence]:
        """Of an expert, one file for each statistic; `options` are by statistic."""
        return [self._file(expert, expert, calibration, n, options.get(n, {})) for n in statistics]

    def base(
        self, expert: str, calibration: str, statistics: Sequence[str], options: Options = NONE
    ) -> list[Evidence]:
        """Of the base model, on the same data as that expert's."""
        return [self._file(BASE, expert, calibration, n, options.get(n, {})) for n in statistics]

    def _file(
        self, model: str, expert: str, calibration: str, statistic: str, options: Mapping[str, Any]
    ) -> Evidence:
        task, noise = self._data(expert, calibration)
        asked = [self.family.fingerprint(self.seed), evidence_mark(), EXAMPLES]
        mark = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
        kind = f"{task}.{NOISE}" if noise else task
        chosen = "".join(f".{name}-{value}" for name, value in options.items() if value)
        folder = self.family.home(self.seed) / "evidence" / f"guides-{mark}"
        path = folder / f"{model}.{kind}.{statistic}{chosen}.safetensors"
        if not path.exists():
            make_folder(folder)
            given = self._given(model, task, noise)
            collect(
                statistic, *given, path, options={statistic: dict(options)}, seed=self.seed
            )  # fmt: skip
        return load_evidence(path)

    def _data(self, expert: str, calibration: str) -> tuple[str, bool]:
        """The task whose examples are taken, and whether noise takes their place."""
        names = list(self.models.experts)
        if calibration == OTHER:
            return names[(names.index(expert) + 1) % len(names)], False
        return expert, calibration == NOISE

    def _given(
        self, model: str, task: str, noise: bool
    ) -> tuple[LiveModel, Sequence[Inputs]]:  # fmt: skip
        """A model, and what it is run on."""
        state: State = self.models.base if model == BASE else self.models.experts[model]
        given = self.family.examples(self.seed, task, state, EXAMPLES)
        if given is None:
            raise MergewiseError(f"{self.family.name} has no calibration data; see docs/lab.md")
        live = LiveModel(model, bare(given), tokenizer=given.model.tokenizer)
        if noise:
            return live, noisy(given.batches, _vocabulary(given), self.seed)
        return live, given.batches


def noisy(batches: Sequence[Inputs], vocabulary: int, seed: int) -> list[dict[str, Tensor]]:
    """Batches of the same shapes: tokens by chance, pixels evenly from the least to the greatest.

    Masks stay as they are.
    """
    chance = torch.Generator().manual_seed(seed)

    def changed(name: str, value: Tensor) -> Tensor:
        if name.endswith("mask"):
            return value
        if not value.is_floating_point():
            drawn = torch.randint(vocabulary, value.shape, generator=chance)
            return drawn.to(value)
        low, high = value.min(), value.max()
        return low + (high - low) * torch.rand(value.shape, generator=chance).to(value)

    return [{name: changed(name, value) for name, value in batch.items()} for batch in batches]


def _vocabulary(given: Calibration) -> int:
    from torch import nn

    sizes = [m.num_embeddings for m in given.model.module.modules() if isinstance(m, nn.Embedding)]
    return max(sizes, default=1)
