"""Statistics of every expert on its own training data, for methods that read them."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lab._journal import code_mark, digest_of, sources
from benchmarks.lab._train import kept_state
from mergewise._lazy import torch
from mergewise.evidence import collect
from mergewise.methods import Need, get_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.lab._contenders import Contender
    from benchmarks.lab._family import Family, Models
    from mergewise.evidence import LiveModel
    from mergewise.evidence.evaluators import Head

Means = Mapping[str, Mapping[str, "Tensor"]]
Inputs = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Calibration:
    """What an expert's statistics are collected on.

    Attributes:
        model: the expert; its outputs are logits.
        batches: unlabelled, as keyword arguments of the module.
        prefix: what its parameters' names have before the merged model's.
    """

    model: LiveModel
    batches: Sequence[Inputs]
    prefix: str = ""


def headed(
    body: nn.Module, head: Head, features: Callable[[nn.Module, Inputs], Tensor]
) -> nn.Module:
    """A body and its task's head as one classifier; the prefix is ``body.``.

    Args:
        features: of a batch, [examples, width], as in training.
    """
    from torch import nn

    class Headed(nn.Module):
        main_input_name = "inputs"  # marks a module whose inputs are given by name

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, **inputs: Tensor) -> Tensor:
            return head.logits(features(self.body, inputs))

    return Headed().eval()


@functools.cache
def evidence_mark() -> str:
    """Identifies the code that collects statistics: 64 hexadecimal digits."""
    parts = ("evidence/_*.py", "evidence/models/*.py", "evidence/statistics/*.py")
    return digest_of([Path(__file__), *sources(*parts)])


def evidence_of(
    family: Family, seed: int, models: Models, contender: Contender
) -> list[Means] | None:
    """What a contender's method reads of each expert; None if it reads nothing.

    Collected once for a number of examples and kept beside the models.
    """
    needs = get_method(contender.method).needs_at_defaults()
    if not needs:
        return None
    if contender.walked:
        return _walked(family, seed, models, contender)
    return [
        {n.statistic: _kept(family, seed, models, name, n, contender.examples) for n in needs}
        for name in models.experts
    ]


def _walked(family: Family, seed: int, models: Models, contender: Contender) -> list[Means]:
    """RegMean++'s, of all experts at once; kept beside the models."""
    from benchmarks.lab._walked import STATISTIC, merged_grams

    given = [
        family.calibration(seed, name, state, contender.examples)
        for name, state in models.experts.items()
    ]
    known = [one for one in given if one is not None]
    asked = [family.fingerprint(seed), evidence_mark(), code_mark(contender.method),
             dict(contender.parameters), contender.examples]  # fmt: skip
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = family.home(seed) / "evidence" / f"merged_{STATISTIC}.{contender.examples}.safetensors"
    method, parameters = contender.method, contender.parameters
    found = kept_state(
        path, mark, lambda: merged_grams(family, seed, models, known, method, parameters)
    )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in models.experts}
    for key, gram in found.items():
        expert, _, tensor = key.partition("/")
        parts[expert][tensor] = gram
    return [{STATISTIC: parts[name]} for name in models.experts]


def _kept(
    family: Family, seed: int, models: Models, expert: str, need: Need, examples: int
) -> dict[str, Tensor]:
    path = family.home(seed) / "evidence" / f"{expert}.{need.statistic}.{examples}.safetensors"

    def make() -> dict[str, Tensor]:
        given = family.calibration(seed, expert, models.experts[expert], examples)
        assert given is not None, "contenders() asks first"
        return _collected(given, need, seed)

    what = [need.statistic, need.sum, need.unit]  # all of a need that decides the numbers
    asked = [family.fingerprint(seed), evidence_mark(), expert, what, examples]
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return kept_state(path, mark, make)


def _collected(given: Calibration, need: Need, seed: int) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "evidence.safetensors"
        found = collect(need.statistic, given.model, given.batches, out, seed=seed)
        return {
            tensor.removeprefix(given.prefix): (
                found.sums(need.statistic, tensor)[need.sum]
                / found.counts(need.statistic, tensor)[need.unit]
            ).to(torch.float32)
            for tensor in found.tensors(need.statistic)
        }
