"""How far apart the subspaces of LoRAs are, before they are added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import open_adapter
from mergewise.errors import IncompatibleModelsError, MergewiseError
from mergewise.forms._adapter_files import AdapterFactors, Factors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Of one weight that two adapters change.

    Attributes:
        module: the weight's module.
        first, second: the adapters, numbered as given.
        inputs: of the down projections A, ``|A_1 A_2^T| / (|A_1| |A_2|)`` in Frobenius norms: 0
            if they read orthogonal subspaces.
        outputs: of the up projections B, likewise.
    """

    module: str
    first: int
    second: int
    inputs: float
    outputs: float


def adapter_overlap(
    adapters: Sequence[Path | str],
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[Overlap, ...]:
    """The interference of every two LoRAs, weight by weight.

    Orthogonal Adaptation (Po et al. 2023, arXiv 2312.02432) trains LoRAs whose down projections
    are orthogonal: then ``inputs`` is 0, and in their sum each answers its own inputs undisturbed.
    Random directions give about ``1 / sqrt(width)``, and equal adapters of rank r about
    ``1 / sqrt(r)``.

    Tensors that an adapter holds whole (a trained head, norms) have no factors and are left out.

    Args:
        adapters: their folders.
        progress: is told how many weights are done, and of how many.
        warn: is told what is left out of each adapter.

    Raises:
        MergewiseError: for fewer than two adapters.
        IncompatibleModelsError: if two adapters change weights of different shapes.
        NotBuiltYetError: for adapters that are more than low-rank matrices.
        CheckpointError, NonFiniteError: if a file cannot be read.
    """
    if len(adapters) < 2:
        raise MergewiseError(f"two or more adapters expected, got {len(adapters)}")
    known = [AdapterFactors(open_adapter(path), str(path), whole=True) for path in adapters]
    for each in known:
        if warn and (left_out := _left_out(each)):
            warn(left_out)
    modules = list(dict.fromkeys(module for each in known for module in each.modules))
    found = []
    for done, module in enumerate(modules, 1):
        factors = [(i, f) for i, each in enumerate(known) if (f := each.read(module))]
        for (i, one), (j, other) in combinations(factors, 2):
            found.append(_between(module, i, one, j, other))
        if progress:
            progress(done, len(modules))
    return tuple(found)


def _left_out(adapter: AdapterFactors) -> str:
    whole = list(adapter.adapter.replaced)
    if not whole:
        return ""
    more = f" and {len(whole) - 3} more" if whole[3:] else ""
    return (
        f"{adapter.label}: it also holds {len(whole)} whole tensor{'s' * (len(whole) > 1)}, which "
        f"are not compared: {', '.join(whole[:3])}{more}"
    )


def _between(module: str, i: int, one: Factors, j: int, other: Factors) -> Overlap:
    if one.a.shape[1:] != other.a.shape[1:] or len(one.b) != len(other.b):
        raise IncompatibleModelsError(
            f"module {module}: the adapters change weights of different shapes; are they of one "
            "base?"
        )
    inputs = _cosine(one.a.flatten(1), other.a.flatten(1))
    outputs = _cosine(one.b.flatten(1).mT, other.b.flatten(1).mT)
    return Overlap(module, i, j, inputs, outputs)


def _cosine(one: Tensor, other: Tensor) -> float:
    """Of row spaces [r, n]; 0 where a factor is zero."""
    sizes = float(torch.linalg.norm(one.double()) * torch.linalg.norm(other.double()))
    return float(torch.linalg.norm(one.double() @ other.double().mT)) / sizes if sizes else 0.0
