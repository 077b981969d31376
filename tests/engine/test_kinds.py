"""Shapes and element types at the edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import base_evidence_for, evidence_for
from small_models import NO_BASE, PARAMETERS, assert_same, load, near, save

from mergewise import merge, merge_state_dicts
from mergewise._device import pick_device
from mergewise.engine._block import Block, Keys
from mergewise.engine._kernels import Kernels, finite
from mergewise.errors import IncompatibleModelsError, MergewiseError
from mergewise.methods import all_methods, get_method

METHODS = sorted(set(all_methods()) - {"passthrough"})


def run(method: str, base: Any, experts: list[Any], **options: Any) -> Any:
    parameters = {**PARAMETERS.get(method, {}), **options.pop("parameters", {})}
    if "weight" in get_method(method).params:
        parameters.setdefault("weight", 1.0)
    used = None if method in NO_BASE else base
    options.setdefault("evidence", evidence_for(get_method(method), experts, parameters))
    options.setdefault("base_evidence", base_evidence_for(get_method(method), base, parameters))
    return merge_state_dicts(experts, method, base=used, parameters=parameters, **options)


def experts_of(method: str, base: Any) -> list[Any]:
    return [near(base, i) for i in range(get_method(method).experts[1] or 2)]


SHAPES = [(), (0,), (1,), (7,), (1, 1), (0, 4), (4, 0), (3, 5), (2, 3, 4), (2, 3, 3, 3), (1, 300)]


@pytest.mark.parametrize("method", METHODS)
def test_every_shape(method: str) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {str(shape): torch.randn(shape, generator=draw) for shape in SHAPES}
    experts = experts_of(method, base)
    before = [{n: t.clone() for n, t in m.items()} for m in (base, *experts)]
    out = run(method, base, experts)
    for shape in SHAPES:
        assert out[str(shape)].shape == shape
        assert torch.isfinite(out[str(shape)]).all()
    for model, copy in zip((base, *experts), before, strict=True):
        assert_same(model, copy)


@pytest.mark.parametrize("method", METHODS)
def test_float64_is_computed_as_such(method: str) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(30, 40, generator=draw, dtype=torch.float64)}
    experts = experts_of(method, base)
    experts = [{"w": base["w"] + 1e-3 * (e["w"] - base["w"])} for e in experts]
    wide = run(method, base, experts)["w"]
    narrow = run(method, {"w": base["w"].float()}, [{"w": e["w"].float()} for e in experts])["w"]
    assert wide.dtype == torch.float64
    # a selection may fall on another of two nearly equal elements
    close = (wide - narrow).abs() < 1e-4
    assert close.float().mean() > 0.97
    assert not torch.equal(wide.float().double(), wide)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.77])
def test_exactly_k_of_float64(density: float) -> None:
    """Thresholds are of float32 scores; comparing them with float64 ones must not lose any."""
    draw = torch.Generator().manual_seed(3)
    delta = torch.randn(50_000, generator=draw, dtype=torch.float64)
    out = run(
        "ties",
        {"w": torch.zeros_like(delta)},
        [{"w": delta}],
        parameters={"density": density, "normalize": False},
    )
    assert int((out["w"] != 0).sum()) == int(density * 50_000)


def test_strided_and_expanded_tensors() -> None:
    whole = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    views = {"t": whole.T, "step": whole[::2, 1::3], "same": whole[:1].expand(4, 8)}
    plain = {n: t.contiguous() for n, t in views.items()}
    other = near(plain, 0)
    assert_same(run("linear", None, [views, other]), run("linear", None, [plain, other]))


def test_what_is_no_floating_point_number_is_copied() -> None:
    base = {
        "steps": torch.tensor([3]), "mask": torch.tensor([True, False]), "w": torch.ones(2),
        "ids": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip
    expert = {n: (t + 1 if n != "mask" else ~t) for n, t in base.items()}
    out = run("task_arithmetic", base, [expert])
    for name in ("steps", "mask", "ids"):
        assert torch.equal(out[name], base[name]) and out[name].dtype == base[name].dtype
    assert out["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)
def test_integers_through_files(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    for i, name in enumerate("ab"):
        state = {"n": torch.tensor([0, 1, i]).to(kind), "w": torch.full((3,), float(i))}
        save(tmp_path / name, state)
    sources = [{"model": str(tmp_path / n)} for n in "ab"]
    document = {"merge_method": "linear", "models": sources, "parameters": {"weight": 1}}
    merge(document, tmp_path / "out")
    state = load(tmp_path / "out")
    assert state["n"].dtype == kind and state["n"].long().tolist() == [0, 1, 0]
    assert state["w"].tolist() == [0.5] * 3


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_are_merged_and_copied(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    for i, name in enumerate("abc"):
        value = torch.tensor([1.0, -2.0, 4.0 * i])
        save(tmp_path / name, {"w": value.to(kind), "v": value.to(kind)})
    sources = [{"model": str(tmp_path / n)} for n in "bc"]
    document = {
        "merge_method": "task_arithmetic", "base_model": str(tmp_path / "a"), "models": sources,
        "parameters": {"weight": 0.5}, "exclude": ["v"],
    }  # fmt: skip
    merge(document, tmp_path / "out")
    state = load(tmp_path / "out")
    assert state["w"].dtype == kind and state["w"].float().tolist() == [1.0, -2.0, 6.0]
    assert state["v"].float().tolist() == [1.0, -2.0, 0.0]


def test_models_that_do_not_fit_together() -> None:
    one = {"w": torch.ones(2), "x": torch.ones(2)}
    with pytest.raises(IncompatibleModelsError, match="differ in 1 tensor names: x"):
        run("linear", None, [one, {"w": torch.ones(2)}])
    with pytest.raises(IncompatibleModelsError, match=r"tensor w: shape \(3,\) in experts\[1\]"):
        run("linear", None, [one, {"w": torch.ones(3), "x": torch.ones(2)}])
    with pytest.raises(MergewiseError, match="pass base="):
        merge_state_dicts([one], "ties", parameters={"weight": 1.0})


def test_nan_in_eight_bits_is_noticed() -> None:
    numbers = torch.ones(3).to(torch.float8_e4m3fn)
    assert finite(numbers)
    numbers.view(torch.uint8)[1] = 0x7F
    assert not finite(numbers)


def test_compiled_loops_are_given_host_memory_only() -> None:
    kernels = Kernels(
        get_method("linear"), {"share": [1.0]}, Keys.of(0, "w", 1), torch.float32, fuse=True
    )
    elsewhere = Block(0, 4, [torch.empty(4, device="meta")], False, 4, (-1,))
    assert kernels._fused("combine", elsewhere) is None


@pytest.mark.parametrize("device", ["meta", "mps", "gpu", "cuda:99"])
def test_devices_that_cannot_compute_are_refused(device: str) -> None:
    with pytest.raises(MergewiseError, match="device"):
        pick_device(device)


def test_one_name_for_the_processor() -> None:
    assert pick_device("cpu:0") == "cpu"
