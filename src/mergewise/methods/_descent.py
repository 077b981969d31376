"""Optimisers for methods that take a fixed number of steps from a fixed start.

Written out, as `torch.optim` would keep state and graphs; the updates are those of PyTorch at its
defaults. They run in the type of what they are given and draw nothing at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise._stopping import stop_if_asked

if TYPE_CHECKING:
    from torch import Tensor

MOST_STEPS = 100_000
_BETAS, _EPS = (0.9, 0.999), 1e-8


def adam(
    gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int, learning_rate: float
) -> Tensor:
    """`steps` steps of Adam (Kingma and Ba 2015, arXiv 1412.6980); `start` is not changed."""
    x, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    first, second = _BETAS
    for step in range(1, steps + 1):
        stop_if_asked()
        slope = gradient(x)
        mean.lerp_(slope, 1 - first)
        square.mul_(second).addcmul_(slope, slope, value=1 - second)
        size = (square.sqrt() / math.sqrt(1 - second**step)).add_(_EPS)
        x.addcdiv_(mean, size, value=-learning_rate / (1 - first**step))
    return x


def sgd(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
) -> Tensor:
    """`steps` steps of gradient descent with momentum; `start` is not changed."""
    x, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(steps):
        stop_if_asked()
        velocity.mul_(momentum).add_(gradient(x))
        x.sub_(velocity, alpha=learning_rate)
    return x
