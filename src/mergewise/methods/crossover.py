"""Crossover: coarse features of one model, fine ones of another, by Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs
from mergewise.methods._matrix import PlacedMethod
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


def _frequencies(sizes: Sequence[int], like: Tensor) -> Tensor:
    """The root mean square of the axes' frequencies, 1 for the highest; the last axis halved."""
    squares = torch.zeros((), dtype=like.dtype, device=like.device)
    for axis, size in enumerate(sizes):
        last = axis == len(sizes) - 1
        steps = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(
            size, 1 / size, dtype=like.dtype, device=like.device
        )
        share = steps.abs() / max(1, size // 2)
        squares = squares + share.reshape([-1 if i == axis else 1 for i in range(len(sizes))]) ** 2
    return (squares / len(sizes)).sqrt()


def _filter(frequency: Tensor, alpha: float, tilt: float) -> Tensor:
    """The share of the second model at each frequency."""
    if tilt < 1e-10:
        return (frequency > 1 - alpha).to(frequency.dtype)
    slope = 1 / math.tan(math.pi * tilt / 2)
    return (frequency * slope + alpha * slope + alpha - slope).clamp(0, 1)


class Crossover(PlacedMethod):
    """Frequencies along a tensor's axes below a cut are the base's, those above the expert's.

    A filter says how much of each frequency is the expert's: a cut at `1 - alpha` of the highest
    for `tilt` 0, the share alpha of all for `tilt` 1, a slope between. For the axes of an image or
    a kernel, frequencies are coarse and fine; hidden units have no order, so of other weights this
    is a mixture and no more. Tensors without axes are interpolated; experts stacked in one tensor
    are transformed one by one.
    """

    name = "crossover"
    summary = "low frequencies of one model's tensors, high frequencies of another's"
    advice = (
        "To take coarse structure of one model and fine structure of another, as the "
        "diffusion community does. That neighbouring rows belong together is assumed, which "
        "trained weights do not promise."
    )
    family = "arithmetic"
    experts = (1, 1)
    formula = "b + F^-1(f F(d)), f = clip(r cot + alpha cot + alpha - cot, 0, 1), cot(pi tilt / 2)"
    source = "sd-mecha (ljleb), crossover"
    variant = "sd-mecha 1.1.5 for tilt in [0, 1]; swap the models for the other half"
    symmetric = False
    params = {
        "alpha": Param(float, 0.5, "share of the expert: 0 the base, 1 the expert", ge=0, le=1),
        "tilt": Param(
            float, 0.0, "0: a sharp cut; 1: no cut, an even mixture", ge=0, le=1, native=True
        ),
    }
    example = """
merge_method: crossover
base_model: base
models:
  - model: expert_a
parameters: {alpha: 0.5, tilt: 0.2}
"""

    def access(self, p: Settings) -> Access:
        return Access.WHOLE

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        return 2.5 * math.prod(shape)

    def mixture(self, p: Settings, base: bool, experts: int) -> list[float]:
        return [1.0 - p.alpha, p.alpha] if base else super().mixture(p, base, experts)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        [delta] = x.deltas
        if s.alpha == 1:
            return x.experts[0].clone()
        if not delta.dim() or not delta.numel() or s.alpha == 0 or s.tilt == 1:
            return x.base + delta * s.alpha
        axes = list(range(s.kind == "stack", delta.dim()))
        sizes = [delta.shape[axis] for axis in axes]
        spectrum = torch.fft.rfftn(delta, dim=axes)
        share = _filter(_frequencies(sizes, delta), s.alpha, s.tilt)
        return x.base + torch.fft.irfftn(spectrum * share, s=sizes, dim=axes)
