"""Make a module differentiable for a while, and leave it as it was found."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import EvidenceError
from mergewise.evidence.models._live import LiveModel

if TYPE_CHECKING:
    from torch import nn


def check_differentiable(model: LiveModel) -> None:
    """Refuse models whose gradients cannot be taken here.

    Raises:
        EvidenceError: if the model is offloaded or quantised.
    """
    for name, parameter in model.module.named_parameters():
        if parameter.is_meta:
            raise EvidenceError(
                f"{model.name}: statistics of gradients need the whole model in memory, and "
                f"{name} is offloaded; run without offload, or collect a forward statistic"
            )
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise EvidenceError(
                f"{model.name}: {name} is quantised ({parameter.dtype}), so it has no gradient; "
                "collect from the model in float16, bfloat16 or float32"
            )


@contextmanager
def differentiable(module: nn.Module, wanted: Collection[str]) -> Iterator[None]:
    """In evaluation mode, in float32 or wider, with gradients for the `wanted` parameters only."""
    training = [child for child in module.modules() if child.training]
    flags = {p: p.requires_grad for p in module.parameters()}
    narrow = [
        (tensor, tensor.data)
        for tensor in [*module.parameters(), *module.buffers()]
        if tensor.is_floating_point() and tensor.element_size() < 4
    ]
    try:
        module.eval()
        for tensor, data in narrow:
            tensor.data = data.float()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted)
        with torch.enable_grad():
            yield
    finally:
        for tensor, data in narrow:
            tensor.data = data
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for child in training:
            child.training = True
