"""Statistics of every expert on its own training data, for methods that read them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._train import kept_state
from mergewise._lazy import torch
from mergewise.evidence import collect
from mergewise.methods import Method, Need, get_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.lab._contenders import Contender
    from benchmarks.lab._family import Family, Models
    from mergewise.evidence import LiveModel
    from mergewise.evidence.evaluators import Head

Means = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Calibration:
    """What an expert's statistics are collected on.

    Attributes:
        model: the expert; its outputs are logits.
        batches: unlabelled, as keyword arguments of the module.
        prefix: what its parameters' names have before the merged model's.
    """

    model: LiveModel
    batches: Sequence[Mapping[str, Tensor]]
    prefix: str = ""


def headed(body: nn.Module, head: Head) -> nn.Module:
    """A body and its task's head as one classifier; the prefix is ``body.``."""
    from torch import nn

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, **inputs: Tensor) -> Tensor:
            if hasattr(body, "main_input_name"):
                features = _mean(body(**inputs).last_hidden_state, inputs.get("attention_mask"))
            else:
                features = body(*inputs.values())
            return head.logits(features)

    return Headed().eval()


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Over the real positions."""
    if mask is None:
        return hidden.mean(dim=1)
    weight = mask[..., None].to(hidden)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def evidence_of(
    family: Family, seed: int, models: Models, contender: Contender
) -> list[Means] | None:
    """What a contender's method reads of each expert; None if it reads nothing.

    Collected once for a number of examples and kept beside the models.
    """
    needs = needed(get_method(contender.method))
    if not needs:
        return None
    return [
        {need.statistic: _kept(family, seed, models, name, need, contender.examples)}
        for name in models.experts
        for need in needs
    ]


def needed(method: Method) -> tuple[Need, ...]:
    """What a method reads at its defaults."""
    return method.needs_at_defaults()


def _kept(
    family: Family, seed: int, models: Models, expert: str, need: Need, examples: int
) -> dict[str, Tensor]:
    path = family.home(seed) / "evidence" / f"{expert}.{need.statistic}.{examples}.safetensors"

    def make() -> dict[str, Tensor]:
        given = family.calibration(seed, expert, models.experts[expert], examples)
        assert given is not None, "contenders() asks first"
        return _collected(given, need, seed)

    return kept_state(path, family.fingerprint(seed), make)


def _collected(given: Calibration, need: Need, seed: int) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "evidence.safetensors"
        options: dict[str, Any] = {"fisher": {"labels": "model"}}
        found = collect(
            need.statistic, given.model, given.batches, out, seed=seed,
            options={k: v for k, v in options.items() if k == need.statistic},
        )  # fmt: skip
        return {
            tensor.removeprefix(given.prefix): (
                found.sums(need.statistic, tensor)[need.sum]
                / found.counts(need.statistic, tensor)[need.unit]
            ).to(torch.float32)
            for tensor in found.tensors(need.statistic)
        }
