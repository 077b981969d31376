"""AdaMergeX for IA3: a task's adapter, times what another task says of the language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Method
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class AdaMergeX(Method):
    """The rule for adapters that multiply, from three models ``BASE+ADAPTER``.

    In this order: the task in the source language, the reference task in the target language, and
    the reference task in the source language. IA3 multiplies rows or columns of a weight, so the
    quotient of two adapted weights is that of the adapters, and the base's weight drops out. Where
    the last model is zero the quotient is taken as 1, and it is kept within `limit`.

    For adapters that add (LoRA) the same idea is `task_arithmetic` with weights 1, lambda and
    -lambda. Use this one for IA3 alone: quotients of other weights mean nothing.
    """

    name = "adamergex"
    summary = "carries a task over to another language by the quotient of two IA3 adapters"
    advice = (
        "To carry a task to another language with three IA3 adapters of one base. For "
        "adapters that add (LoRA), the same is task arithmetic with a negative weight."
    )
    family = "arithmetic"
    base = "ignored"
    experts = (3, 3)
    formula = "x_1 (1 + lambda (x_2 / x_3 - 1))"
    source = "AdaMergeX (Zhao et al. 2024, arXiv 2402.18913)"
    variant = (
        "the rule for IA3 in the authors' script (DAMO-NLP-SG/AdamergeX 29c4eeb, where it is "
        "commented out); the limit is ours"
    )
    symmetric = False
    params = {
        "lambda": Param(float, 1.0, "how much of the quotient to take"),
        "limit": Param(float, 1000.0, "largest size of the quotient", gt=0, native=True),
    }
    example = """
merge_method: adamergex
models:
  - model: expert_a
  - model: expert_b
  - model: base
"""

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        task, target, source = x.experts
        none = source == 0
        quotient = target / torch.where(none, torch.ones_like(source), source)
        quotient = torch.minimum(torch.maximum(quotient, -s.limit + 0 * task), s.limit + 0 * task)
        quotient = torch.where(none, torch.ones_like(quotient), quotient)
        return task * (1.0 + s.lambda_ * (quotient - 1.0))
