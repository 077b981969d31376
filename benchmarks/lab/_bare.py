"""A classifier whose parameters are named as those of the body that is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.lab._evidence import Calibration


def bare(given: Calibration) -> nn.Module:
    """The module of a calibration, its body's parameters named as in the merged model."""
    from torch import nn

    whole = given.model.module
    if not given.prefix:
        return whole
    body = whole.get_submodule(given.prefix.removesuffix("."))

    class Bare(nn.Module):
        main_input_name = "inputs"  # marks a module whose inputs are given by name

        def __init__(self) -> None:
            super().__init__()
            self._modules = body._modules
            self._parameters = body._parameters
            self._buffers = body._buffers
            self.__dict__["whole"] = whole  # not a child, or names would begin with it

        def forward(self, **inputs: Tensor) -> Any:
            return self.__dict__["whole"](**inputs)

    return Bare().eval()
