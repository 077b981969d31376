"""Elementwise methods that leave tensors out: which, what those get, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import load, save
from torch import Tensor

from mergewise import merge, merge_state_dicts, plan
from mergewise.engine import _memory

METHODS = ["lota", "localize_and_stitch"]
EMBEDDING, HEAD, HEAD_BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
WEIGHT, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
SHAPES = {EMBEDDING: (5, 4), WEIGHT: (6, 4), NORM: (4,), HEAD: (5, 4), HEAD_BIAS: (5,)}
INSIDE = {"linear": {WEIGHT}, "layers": {WEIGHT, NORM}, "all": set(SHAPES), "none": set()}
DEFAULTS = {"lota": "linear", "localize_and_stitch": "layers"}


def models() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=draw) for n, s in SHAPES.items()}
    experts = [
        {n: v + torch.randn(v.shape, generator=draw) for n, v in base.items()} for _ in range(2)
    ]
    for expert in experts:
        expert[EMBEDDING] = expert[EMBEDDING] * 100  # all the largest changes, were it inside
    return base, experts


def merged(method: str, **given: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    base, experts = models()
    return base, merge_state_dicts(experts, method, base=base, parameters=given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tensors", [None, "linear", "layers", "all", "none"])
def test_only_tensors_inside_change(method: str, tensors: str | None) -> None:
    base, got = merged(method, density=1.0, **({"tensors": tensors} if tensors else {}))
    changed = {name for name in SHAPES if not torch.equal(got[name], base[name])}
    assert changed == INSIDE[tensors or DEFAULTS[method]]


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_of_the_whole_model_are_of_the_tensors_inside(method: str) -> None:
    base, experts = models()
    given = {"density": 0.25, "tensors": "layers"}
    got = merge_state_dicts(experts[:1], method, base=base, parameters=given)
    kept = sum(int((got[n] != base[n]).sum()) for n in SHAPES)
    assert kept == 7  # of 24 + 4
    given["tensors"] = "all"
    got = merge_state_dicts(experts[:1], method, base=base, parameters=given)
    assert int((got[EMBEDDING] != base[EMBEDDING]).sum()) > 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("otherwise", "factor"), [("mean", 0.5), ("sum", 1.0), ("base", 0.0)])
def test_all_others_follow_the_policy(
    method: str, fused: bool, otherwise: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "FUSE_FROM_ELEMENTS", 0 if fused else 1 << 60)
    base, experts = models()
    given = {"otherwise": otherwise, "density": 0.1}
    got = merge_state_dicts(experts, method, base=base, parameters=given)
    for name in (EMBEDDING, HEAD, HEAD_BIAS):
        change = sum(expert[name] - base[name] for expert in experts)
        torch.testing.assert_close(got[name], base[name] + change * factor)


def test_convolutions_of_plain_networks_are_inside() -> None:
    shapes = {"conv1.weight": (4, 1, 3, 3), "conv2.weight": (4, 4, 3, 3), "fc.weight": (3, 4)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    base["visual.conv1.weight"] = torch.zeros(4, 3, 2, 2)  # the patches' embedding of CLIP
    expert = {name: torch.ones_like(value) for name, value in base.items()}
    given = {"density": 1.0}
    got = merge_state_dicts([expert], "localize_and_stitch", base=base, parameters=given)
    assert {name for name, value in got.items() if value.any()} == set(shapes)


def test_weights_and_lambda_count_there_too() -> None:
    base, experts = models()
    given = {"otherwise": "sum", "weight": [2.0, 0.5], "lambda": 0.1, "rescale": True}
    got = merge_state_dicts(experts, "lota", base=base, parameters=given)[NORM]
    change = 2 * (experts[0][NORM] - base[NORM]) + 0.5 * (experts[1][NORM] - base[NORM])
    torch.testing.assert_close(got, base[NORM] + 0.1 * change)


def test_a_mask_decides_by_itself_what_it_is_for() -> None:
    base, experts = models()
    masks = [{"mask": {n: torch.ones_like(v) for n, v in base.items()}}] * 2
    got = merge_state_dicts(
        experts, "localize_and_stitch", base=base, parameters={"localize": "mask"}, evidence=masks
    )
    for name in SHAPES:
        torch.testing.assert_close(got[name], (experts[0][name] + experts[1][name]) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_and_the_provenance_tell(method: str, tmp_path: Path) -> None:
    base, experts = models()
    for name, state in zip(("base", "a", "b"), (base, *experts), strict=True):
        save(tmp_path / name, state)
    recipe = {
        "merge_method": method,
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "dtype": "float32",
    }
    reason = plan(recipe).output.tensors[EMBEDDING].reason
    assert reason == f"embedding, not among `tensors: {DEFAULTS[method]}`: as the base"
    merge(recipe, tmp_path / "out")
    got = load(tmp_path / "out")
    in_memory = merge_state_dicts(experts, method, base=base)
    assert all(torch.equal(got[name], in_memory[name]) for name in SHAPES)
    record = json.loads((tmp_path / "out" / "mergewise_provenance.json").read_text())
    [stage] = record["stages"]
    assert stage["defaults"]["tensors"] == DEFAULTS[method]
    assert stage["otherwise"][reason] == 2
