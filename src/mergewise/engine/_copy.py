"""Tensors that are taken over from one input as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine._kernels import finite
from mergewise.engine._sources import Source
from mergewise.engine._task import Options
from mergewise.engine._work import Range, Work
from mergewise.errors import NonFiniteError
from mergewise.methods import Access

if TYPE_CHECKING:
    from torch import Tensor


class FlatTask:
    """What tasks have in common that go through a tensor as one axis."""

    shape: tuple[int, ...]
    options: Options

    def __post_init__(self) -> None:
        self.size = math.prod(self.shape)
        self.columns = 1
        self.matrix = False
        self.access = Access.FLAT

    def ranges(self) -> list[Range]:
        step = self.options.step
        return [(at, min(step, self.size - at)) for at in range(0, self.size, step)]


@dataclass
class CopyTask(FlatTask):
    """One tensor copied, at most into another floating-point type; see `TensorTask`."""

    name: str
    shape: tuple[int, ...]
    source: Source
    out_dtype: torch.dtype
    options: Options

    def prepare(self, shared: Any = None) -> Work:
        yield from self.source.prepare()

    def merged(self, where: Range) -> Tensor:
        block = self.source.read(*where, 0)
        bad = block.is_floating_point() and not finite(block)
        if bad and not self.options.check:
            self.options.nonfinite.add(f"{self.source.name} of {self.source.model}")
        elif bad:
            raise NonFiniteError(
                f"tensor {self.source.name} of model {self.source.model} holds NaN or infinity; "
                "repair that model, or pass --allow-nonfinite (allow_nonfinite=True)"
            )
        out = block.to(self.out_dtype)
        if self.options.check and out.dtype != block.dtype and not finite(out):
            raise NonFiniteError(
                f"tensor {self.name} holds numbers that do not fit "
                f"{str(self.out_dtype).removeprefix('torch.')}; choose a wider dtype"
            )
        return out
