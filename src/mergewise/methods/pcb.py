"""PCB-Merging: parameters compete, within each task and between tasks, over the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._select import GRANULARITY
from mergewise.methods._smooth import falling_exp, tanh
from mergewise.methods._weights import combination, total

if TYPE_CHECKING:
    from torch import Tensor


class Pcb(Method):
    """Weighs each task's elements by size within the task and by agreement with the other tasks.

    Sizes are clipped at order statistics and spread from 0 to 1. Of the balance that comes of
    them only what exceeds that of the top `density` counts, spread from 0 to 1 again. Order
    statistics are exact, of the whole model by default. Balances against the other tasks (below
    0) are never kept, whatever the density; where all that are kept are equal, each counts 1.
    """

    name = "pcb"
    summary = "weighs elements by their size in the task and their agreement with other tasks"
    advice = (
        "For several experts of like strength, where size and agreement should decide element "
        "by element. It drops most elements at the published ratio and holds a few numbers of "
        "each expert for the whole model."
    )
    family = "task vectors"
    formula = (
        "c_i = sign(d_i) clip(|d_i|), a_i = minmax(|c_i|), e_i = exp(N a_i^2) tanh(d_i sum_j d_j), "
        "s_i = minmax(max(e_i, top density of e_i)); b + lambda sum_i w_i s_i c_i / sum_i s_i"
    )
    source = "PCB-Merging (Du et al. 2024, arXiv 2410.02396)"
    variant = (
        "official code (pcb-merging.py); its scripts for vision clip 0.01, keep 0.05 and are "
        "`inter: normalized` (pcb.py) and `inter: pairs` (pcb_ES.py). The paper, as a survey has "
        "it, takes a softmax over the elements for both terms: within a task that gives the same; "
        "between tasks (of the spread d_i d_j, for each j) no script of theirs has it, nor have we"
    )
    rounds = 2
    copies = 6
    params = {
        "weight": Param(
            float, 1.0, "factor on this model's clipped task vector", per_model=True, native=True
        ),
        "density": Param(
            float, 0.1, "share of the elements whose balance counts; the last of them counts 0",
            gt=0, le=1, native=True,
        ),
        "lambda": Param(float, 1.2, "factor on the merged task vector", native=True),
        "clip": Param(
            float, 0.0001, "share of the smallest and of the largest sizes that are clipped", ge=0,
            lt=0.5, native=True,
        ),
        "inter": Param(
            str, "sum", "agreement with other tasks: tanh of d_i times the sum of all d_j; times "
            "that of all sign(d_j) a_j; or tanh of each pair's a, added up",
            choices=("sum", "normalized", "pairs"), native=True,
        ),
        "granularity": replace(
            GRANULARITY, default="model", choices=("tensor", "model"),
            help="over what order statistics are taken: each tensor, or the whole model",
        ),
    }  # fmt: skip
    example = """
merge_method: pcb
base_model: base
models:
  - model: expert_a
  - model: expert_b
parameters: {density: 0.1}
"""

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        sizes = [delta.abs() for delta in x.deltas]
        return _balances(x, s) if getattr(s, "round", 0) else sizes

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        if getattr(p, "round", 0):
            wanted = [1, n - int(n * (1 - p.density))]
        else:
            wanted = [n - int(n * (1 - p.clip) - 1), n - int(n * p.clip)]
        exactly = [min(max(1, rank), n) - 1 - n for rank in wanted]
        return [exactly for _ in p.weight]

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        shares = []
        for i, balance in enumerate(_balances(x, s)):
            top, least = (found.value for found in s.thresholds[len(s.weight) + i])
            flat = (top <= least) * 1.0
            share = torch.clamp((balance - least) / (top - least + flat), min=0.0)
            # balances may be float64, order statistics are float32
            equal = ((balance * (1.0 + 1e-6) >= least) & (balance > 0)) * flat
            shares.append(share * (1.0 - flat) + equal)
        parts = [clipped * share for clipped, share in zip(_clipped(x, s), shares, strict=True)]
        whole = torch.clamp(total(shares), min=1e-12)
        return x.base + combination(parts, s.weight) / whole * s.lambda_


def _clipped(x: Inputs, s: Settings) -> list[Tensor]:
    """Task vectors with their sizes clipped."""
    out = []
    for i, delta in enumerate(x.deltas):
        high, low = (found.value for found in s.thresholds[i])
        out.append(torch.sign(delta) * torch.clamp(delta.abs(), min=low, max=high))
    return out


def _balances(x: Inputs, s: Settings) -> list[Tensor]:
    """What each task's elements have to say, 0 where others say the opposite."""
    places = []
    for i, clipped in enumerate(_clipped(x, s)):
        high, low = (found.value for found in s.thresholds[i])
        span = high - low
        places.append((clipped.abs() - low) / (span + (span <= 0) * 1.0))
    signed = [torch.sign(d) * place for d, place in zip(x.deltas, places, strict=True)]
    count = len(places)
    out = []
    for i, place in enumerate(places):
        # less by a factor exp(count), which the last minmax undoes, and so never too large
        intra = falling_exp((place * place - 1.0) * count)
        # -0.0 is not below 0, and would rank above all
        out.append(torch.clamp(intra * _agreement(x, s, signed, i), min=0.0).abs())
    return out


def _agreement(x: Inputs, s: Settings, signed: Sequence[Tensor], i: int) -> Tensor:
    if s.inter == "pairs":
        return total([tanh(signed[i] * other) for other in signed])
    others = total(x.deltas if s.inter == "sum" else signed)
    return tanh(x.deltas[i] * others)
