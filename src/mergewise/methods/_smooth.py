"""exp and tanh that are the same compiled and in torch, made of what both round alike.

Libraries' own differ in the last digit, from torch to C and from one processor to the next.
Relative errors are below 1e-6. Only float32 on the CPU is computed so; all else is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# Interpolated at Chebyshev points: exp(x) on [-1/2, 0], (tanh(x)/x - 1)/x^2 by x^2 on [0, 0.36].
_EXP = (
    0.9999999998476684, 0.9999999701235077, 0.49999904075071455, 0.16665507879912614,
    0.04159966979958492, 0.00813259929405571, 0.0010837822400000213,
)  # fmt: skip
_TANH = (
    -0.3333333323120812, 0.13333312866857128, -0.05396155177976746, 0.021788321985068814,
    -0.008410070766281322, 0.002370765604795483,
)  # fmt: skip
_POWERS = {
    64.0: 1.603810890548638e-28, 32.0: 1.2664165549094176e-14, 16.0: 1.1253517471925912e-07,
    8.0: 0.00033546262790251185, 4.0: 0.01831563888873418, 2.0: 0.1353352832366127,
    1.0: 0.36787944117144233, 0.5: 0.6065306597126334,
}  # fmt: skip
"""exp(-key). Steps of these take an exponent to where the polynomial holds, without rounding it."""
_LEAST = -87.0
_SMALL = 0.55


def falling_exp(x: Tensor) -> Tensor:
    """``exp(x)`` of x up to 0; x below -87 counts as -87."""
    if _is_torchs(x):
        return torch.exp(x)
    return _exp(torch.clamp(x, min=_LEAST), 64.0)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent; the relative error is small for small x too."""
    if _is_torchs(x):
        return torch.tanh(x)
    size = x.abs()
    square = x * x
    near = size + size * (square * _horner(_TANH, square))
    if isinstance(x, torch.Tensor) and bool((size < _SMALL).all()):
        return torch.sign(x) * near
    fading = _exp(torch.clamp(size * -2.0, min=-40.0), 32.0)
    far = (1.0 - fading) / (1.0 + fading)
    return torch.sign(x) * torch.where(size < _SMALL, near, far)


def _is_torchs(x: Tensor) -> bool:
    return isinstance(x, torch.Tensor) and (x.dtype != torch.float32 or x.device.type != "cpu")


def _exp(x: Tensor, largest: float) -> Tensor:
    """Of x above -2 `largest`."""
    factor = torch.ones_like(x)
    for step, power in _POWERS.items():
        if step <= largest:
            below = x <= -step
            if isinstance(below, torch.Tensor) and not bool(below.any()):
                continue  # it would change nothing
            x = torch.where(below, x + step, x)
            factor = torch.where(below, factor * power, factor)
    return _horner(_EXP, x) * factor


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """A polynomial, its constant term first."""
    out = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        out = out * x + coefficient
    return out
