"""What methods of whole tensors say they hold is what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import most_held
from small_models import recipe, save

from mergewise import plan
from mergewise.engine import estimate
from mergewise.engine._block import Block, Keys, Threshold
from mergewise.engine._kernels import Kernels
from mergewise.engine._memory import complete_parameters
from mergewise.methods import PlacedMethod, Settings, all_methods, get_method, placed
from mergewise.methods._elements import ElementMethod

METHODS = [
    name
    for name, method in all_methods().items()
    if isinstance(method, PlacedMethod) and not isinstance(method, ElementMethod)
]
OTHERS = [
    ("core_space", {"rule": "ties"}),
    ("iso_c", {"null": "fill"}),
    ("iso_cts", {"null": "fill"}),
    ("knots", {"granularity": "model"}),
    ("knots", {"shared": "inputs"}),
    ("optmerge", {"solver": "sgd"}),
    ("optmerge", {"target": "centred"}),
    ("rotate", {"alpha": 0.5}),
    ("rotate", {"alignment": 0.5}),
]


def models(shape: tuple[int, ...], experts: int, steep: bool) -> list[torch.Tensor]:
    """A base and experts; of a `steep` spectrum singular values are found in stages.

    All are above what counts as rounding of the base.
    """
    draw = torch.Generator().manual_seed(0)
    base = 0.01 * torch.randn(shape, generator=draw)
    changes = [torch.randn(shape, generator=draw) for _ in range(experts)]
    if steep:
        for change in changes:
            u, s, vh = torch.linalg.svd(change, full_matrices=False)
            change.copy_((u * torch.logspace(0, -4, s.shape[-1])[None]) @ vh)
    return [base, *(base + change for change in changes)]


def stages(name: str, tensors: list[torch.Tensor], given: dict[str, Any]) -> Iterator[Any]:
    """Everything that the engine asks of a method for one tensor."""
    method, experts = get_method(name), len(tensors) - 1
    kind = "stack" if tensors[0].dim() == 3 else "matrix"
    steps = {"iterations": 2} if "iterations" in method.params else {}
    values = placed(method, complete_parameters(method, {**steps, **given}, experts), kind)
    kernels = Kernels(method, values, Keys.of(0, "w", experts), torch.float32)
    shape = tensors[0].shape
    block = Block(0, tensors[0].numel(), [t.flatten() for t in tensors], True, shape[-1], shape)
    yield lambda: kernels.scores(block)
    yield lambda: kernels.terms(block)
    kernels.extend({"thresholds": [[Threshold(0.01, 0)]] * experts, "shrink": 1.0})
    yield lambda: kernels.combine(block)


def held_and_said(
    name: str, shape: tuple[int, ...], experts: int, steep: bool, given: dict[str, Any]
) -> tuple[int, float]:
    tensors = models(shape, experts, steep)
    held = max(most_held(stage, tensors) for stage in stages(name, tensors, given))
    method = get_method(name)
    kind = "stack" if len(shape) == 3 else "matrix"
    p = Settings(placed(method, complete_parameters(method, given, experts), kind))
    return held, 8 * method.room(shape, experts, p)


@pytest.mark.parametrize("steep", [False, True])
@pytest.mark.parametrize(("name", "given"), [(name, {}) for name in METHODS] + OTHERS)
def test_it_is_never_less_and_not_much_more(name: str, given: dict[str, Any], steep: bool) -> None:
    least, most = get_method(name).experts
    for experts in {min(max(least, n), most or n) for n in (2, 4)}:
        for shape in ((64, 176), (176, 64), (112, 112), (32, 320)):
            held, said = held_and_said(name, shape, experts, steep, given)
            assert 0.98 * held <= said <= 1.25 * held, f"{shape}, {experts}: {said / held:.2f}"


@pytest.mark.parametrize("name", ["iso_c", "tsv_m", "aswudi", "rotate"])
def test_of_stacked_experts_one_is_worked_on_at_a_time(name: str) -> None:
    experts = min(2, get_method(name).experts[1] or 2)
    held, said = held_and_said(name, (16, 48, 64), experts, False, {})
    assert held <= said <= 1.25 * held


def test_the_estimate_is_that_and_the_inputs(tmp_path: Path) -> None:
    per_worker = {}
    for dtype in (torch.float32, torch.bfloat16):
        root = tmp_path / str(dtype)
        for name in ("base", "expert_a", "expert_b"):
            save(root / name, {"layers.0.w": torch.zeros(64, 176, dtype=dtype)})
        per_worker[dtype] = estimate(plan(recipe(root, "iso_c"))).per_worker
    method, n = get_method("iso_c"), 64 * 176
    p = Settings(placed(method, complete_parameters(method, {}, 2), "matrix"))
    room = 8 * method.room((64, 176), 2, p)
    # three inputs and the output; those of bfloat16 are widened
    assert per_worker[torch.float32] == pytest.approx(room + 4 * 4 * n, abs=8)
    assert per_worker[torch.bfloat16] == pytest.approx(room + (2 * 4 + 4 * 3) * n, abs=8)
