"""Single tensors of a planned merge, computed in memory as the engine computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES
from mergewise.engine import merge_state_dicts
from mergewise.evidence.models import StoredTensors
from mergewise.guides._base import Ask
from mergewise.plan import TensorPlan

if TYPE_CHECKING:
    from torch import Tensor

_NOWHERE = "(no tensor)"
"""Evidence of something else: the method then merges a tensor that it does not describe."""


class PlannedWeights:
    """The experts' tensors, and what the recipe's method makes of them with some statistic.

    Attributes:
        names: tensors that are merged, by their names in the result.
    """

    def __init__(self, ask: Ask, statistic: str) -> None:
        self._statistic = statistic
        self._method = ask.stage.stage.method
        self._seed = ask.stage.stage.seed or 0
        self._plans: Mapping[str, TensorPlan] = {
            name: plan for name, plan in ask.stage.tensors.items() if plan.fate == "merge"
        }
        self._stored = [StoredTensors(expert.checkpoint) for expert in ask.experts]
        self.names = frozenset(self._plans)

    def own(self, expert: int, name: str) -> Tensor:
        """A tensor of an expert, in float32 or wider."""
        plan = self._plans[name]
        value = self._stored[expert][plan.experts[expert].meta.name]
        if plan.in_dtype is None:
            return value
        return value.to(getattr(torch, TORCH_NAMES[plan.in_dtype])).to(value.dtype)

    def merged(self, name: str, means: Sequence[Tensor] | None, turned: bool) -> Tensor:
        """A tensor of the result.

        Args:
            means: each expert's statistic; None if none describes it.
            turned: it is stored [inputs, outputs].
        """
        plan = self._plans[name]
        each = [self.own(i, name) for i in range(len(self._stored))]
        models = [{name: value.T.contiguous() if turned else value} for value in each]
        known = [{_NOWHERE: torch.zeros(1, 1)}] * len(each)
        if means is not None:
            known = [{name: mean} for mean in means]
        result = merge_state_dicts(
            models,
            self._method,
            parameters=plan.values,
            evidence=[{self._statistic: one} for one in known],
            seed=self._seed,
            dtype=getattr(torch, TORCH_NAMES[plan.meta.dtype]),
        )[name]
        return result.T if turned else result
