"""What methods hold in plain torch, where they could have been compiled, is what is said."""

from __future__ import annotations

import pytest
import torch
from live_bytes import most_held

from mergewise.engine._block import Block, Keys, Threshold
from mergewise.engine._kernels import Kernels
from mergewise.engine._memory import complete_parameters
from mergewise.methods import get_method


@pytest.mark.parametrize("experts", [2, 5])
def test_pcb_holds_no_more_than_it_says(experts: int) -> None:
    method, n = get_method("pcb"), 1 << 12
    tensors = [torch.randn(n) for _ in range(experts + 1)]
    values = complete_parameters(method, {}, experts)
    keys = Keys.of(0, "w", experts)
    kernels = Kernels(method, values, keys, torch.float32, fuse=False)
    block = Block(0, n, tensors, True, 64, (64, 64))
    limits = [Threshold(1.0, 0), Threshold(0.01, 0)]
    kernels.extend({"round": 1, "thresholds": [limits] * (2 * experts)})
    stages = (lambda: kernels.scores(block), lambda: kernels.combine(block))
    held = max(most_held(stage, tensors) for stage in stages) / (4 * n)
    assert held <= method.copies * (experts + 1) + 4 <= 1.5 * held
