"""A batch, and how a module is called with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._live import LiveModel


@dataclass(frozen=True)
class Fed:
    """One batch.

    Attributes:
        inputs: keyword arguments of the module, [examples, ...] each.
        mask: [examples, positions], 0 for padding; None without positions.
        labels: classes or token labels, if the data has some.
        keys: which example each is: row of the data, and number of the piece of a long text.
        records: how many records of the data are finished with it.
    """

    inputs: dict[str, Tensor]
    mask: Tensor | None
    labels: Any
    keys: tuple[tuple[int, ...], ...]
    records: int

    @property
    def tokens(self) -> int:
        """Real tokens; examples where there are no tokens."""
        return len(self.keys) if self.mask is None else int(self.mask.sum())


def call(model: LiveModel, inputs: Mapping[str, Tensor]) -> Any:
    """Run a batch: by names for a model of `transformers`, else as the module takes it."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    module = model.module
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    given = {n: v.to(kind) if v.is_floating_point() else v for n, v in given.items()}
    if not hasattr(module, "main_input_name"):
        # images come under the name that models of `transformers` use
        return module(*given.values()) if set(given) == {"pixel_values"} else module(**given)
    if getattr(getattr(module, "config", None), "use_cache", False):
        return module(**given, use_cache=False)
    return module(**given)
