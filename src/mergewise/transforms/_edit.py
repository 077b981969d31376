"""Change parameters of a running model, and know what that means for the checkpoint's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES, Checkpoint
from mergewise.evidence.models import Sites, sites_of

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence import LiveModel


class Editor:
    """Sets parameters and buffers of a model, rounded as they will be stored.

    What is measured next then sees what a reader of the checkpoint will see.

    Args:
        checkpoint: what the model was read from; None for a model that exists in memory only.
    """

    def __init__(self, model: LiveModel, checkpoint: Checkpoint | None = None) -> None:
        self._module, self._checkpoint = model.module, checkpoint
        self.sites: Sites = sites_of(
            model.module, () if checkpoint is None else tuple(checkpoint.tensors)
        )
        self._set: set[str] = set()

    def can(self, name: str) -> bool:
        """Whether stored tensors hold this parameter or buffer, and nothing else's."""
        parts = self.sites.names.of(name)
        alone = name not in self.sites.names.aliases
        shared = name in self.sites.names.aliases.values()
        return bool(parts) and alone and not shared

    def get(self, name: str) -> Tensor:
        """The parameter or buffer, float64 if it is a floating-point one."""
        value = self._find(name).detach()
        return value.double() if value.is_floating_point() else value

    def set(self, name: str, value: Tensor) -> None:
        """Give a parameter or buffer a new value of the same shape."""
        target = self._find(name)
        with torch.no_grad():
            target.copy_(self._rounded(name, value.to(target.device)))
        self._set.add(name)

    def tensors(self) -> dict[str, Tensor]:
        """New values by stored name."""
        found: dict[str, Tensor] = {}
        for name in sorted(self._set):
            found |= self.sites.names.split(name, self._find(name).detach().cpu().clone())
        return found

    def _find(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        owner = self._module.get_submodule(path)
        found: Tensor = getattr(owner, last)
        return found

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        if self._checkpoint is None:
            return value
        stored = self._checkpoint.tensors[self.sites.names.of(name)[0].tensor].dtype
        return value.to(getattr(torch, TORCH_NAMES[stored]))
