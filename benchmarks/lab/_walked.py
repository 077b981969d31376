"""RegMean++'s Gram matrices: of every expert's layers, behind layers that are merged already.

The guide `regmean_plus_plus` collects them of checkpoints that `transformers` can open; here the
same walk runs over the lab's own modules (Nguyen et al. 2025, arXiv 2508.03121).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._family import Family, Models
from benchmarks.lab._merge import merge
from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, open_checkpoint
from mergewise.evidence import Evidence, LiveModel

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.lab._evidence import Calibration
    from mergewise.evidence import Data

GUIDE = "regmean_plus_plus"
STATISTIC = "input_gram"
_BATCH = 64
_NOWHERE = "(no tensor)"
"""Evidence of something else: the method then merges a tensor that it does not describe."""


class _Weights:
    """The experts' tensors, and what a method makes of them with Gram matrices, or without."""

    def __init__(self, models: Models, method: str, parameters: Mapping[str, Any]) -> None:
        self._experts = list(models.experts.values())
        self._method, self._parameters = method, parameters
        self.names = frozenset(n for n, t in models.base.items() if t.is_floating_point())

    def own(self, expert: int, name: str) -> Tensor:
        """A tensor of an expert."""
        return self._experts[expert][name]

    def merged(self, name: str, grams: Sequence[Tensor] | None, turned: bool) -> Tensor:
        """A tensor of the result; `turned` ones are none of the lab's."""
        known = [{_NOWHERE: torch.zeros(1, 1)}] * len(self._experts)
        if grams is not None:
            known = [{name: gram} for gram in grams]
        return merge(
            [{name: expert[name]} for expert in self._experts],
            self._method,
            parameters=self._parameters,
            evidence=[{STATISTIC: one} for one in known],
        )[name]


def merged_grams(
    family: Family,
    seed: int,
    models: Models,
    given: Sequence[Calibration],
    method: str,
    parameters: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Means per token, by ``expert/tensor``.

    Args:
        given: each expert's calibration data; the modules are used up.

    Raises:
        MergewiseError: if the model cannot be walked layer by layer.
    """
    from benchmarks.lab._bare import bare
    from mergewise.evidence._inputs import Reading
    from mergewise.evidence._merged_grams import MergedGrams, gram_request

    live = LiveModel("the merged model", bare(given[0]), tokenizer=given[0].model.tokenizer)
    weights = _Weights(models, method, parameters)
    walk = MergedGrams(
        live, tuple(models.base), weights, Reading(_BATCH, None, None, {}), gram_request({}), _quiet
    )
    with tempfile.TemporaryDirectory(prefix="lab-walk-") as folder:
        experts = [
            (name, _folder(family.checkpoint(seed, name), Path(folder) / name), _data(one))
            for name, one in zip(models.experts, given, strict=True)
        ]
        out = [Path(folder) / f"{i}.safetensors" for i in range(len(experts))]
        files = walk.run(experts, out)
        return {
            f"{name}/{tensor}": _mean(file, tensor)
            for name, file in zip(models.experts, files, strict=True)
            for tensor in file.tensors(STATISTIC)
        }


def _folder(path: Path, place: Path) -> Checkpoint:
    """A checkpoint in a folder of its own, which a record of it wants."""
    if path.is_dir():
        return open_checkpoint(path)
    place.mkdir()
    shutil.copyfile(path, place / "model.safetensors")
    return open_checkpoint(place)


def _data(given: Calibration) -> Data:
    from mergewise.evidence._inputs import as_data

    return as_data(list(given.batches), None, (0, 1), "train")


def _mean(file: Evidence, tensor: str) -> Tensor:
    total = file.sums(STATISTIC, tensor)["gram"]
    return (total.double() / file.counts(STATISTIC, tensor)["tokens"]).float()


def _quiet(line: str) -> None:
    pass
