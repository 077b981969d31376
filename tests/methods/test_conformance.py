"""What holds for every registered method, at its defaults and through the real engine."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml
from _driver import complete, merge_tensor
from small_evidence import base_evidence_for, evidence_for

from mergewise import merge_state_dicts
from mergewise.engine import _compile, _memory
from mergewise.methods import Method, all_methods

METHODS = sorted(all_methods())
SHAPES = {"matrix": (24, 40), "vector": (37,), "scalar": (), "one": (1, 1), "conv": (6, 5, 3, 3)}
NEEDS_ROWS = ("nuslerp", "model_stock", "arcee_fusion", "ext_sub")
# what some methods must be told to take tensors that are zero in one model alone
WITH_ZEROS = {"sparse_soup": {"masks": "union"}}
State = dict[str, torch.Tensor]


def parameters(method: Method, experts: int) -> dict[str, Any]:
    """Something for every parameter that must be given; weights unequal, summing to one."""
    given: dict[str, Any] = {}
    for name, param in method.params.items():
        if not param.required:
            continue
        weights = [2.0 * (i + 1) / (experts * (experts + 1)) for i in range(experts)]
        given[name] = weights if param.per_model else 0.4
    return given


def count(method: Method) -> int:
    least, most = method.experts
    return max(least, min(3, most or 3))


def models(method: Method, scale: float = 0.1) -> tuple[State | None, list[State]]:
    draw = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    experts = [
        {name: w + scale * torch.randn(w.shape, generator=draw) for name, w in base.items()}
        for _ in range(count(method))
    ]
    return (None if method.base == "ignored" else base), experts


@pytest.fixture(params=METHODS)
def method(request: Any) -> Method:
    return all_methods()[request.param]


def run(method: Method, base: State | None, experts: list[State], **more: Any) -> State:
    given = {**parameters(method, len(experts)), **more.pop("parameters", {})}
    more.setdefault("evidence", evidence_for(method, experts, given))
    more.setdefault("base_evidence", base_evidence_for(method, base, given))
    return merge_state_dicts(experts, method.name, base=base, parameters=given, **more)


def test_equal_inputs_give_that_input_back(method: Method) -> None:
    _, experts = models(method)
    base = None if method.base == "ignored" else experts[0]
    merged = run(method, base, [experts[0]] * count(method))
    assert method.idempotent
    torch.testing.assert_close(merged, experts[0], rtol=1e-5, atol=1e-6)


def test_no_change_gives_the_base(method: Method) -> None:
    if method.base == "ignored":
        pytest.skip("has no base")
    base, _ = models(method)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.items()}  # type: ignore[union-attr]
    for origin in (base, zeros):
        merged = run(method, origin, [origin] * count(method))  # type: ignore[list-item]
        torch.testing.assert_close(merged, origin, rtol=1e-6, atol=1e-6)


def test_zero_tensors_stay_finite(method: Method) -> None:
    base, experts = models(method)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in experts[0].items()}
    more = WITH_ZEROS.get(method.name, {})
    for state in run(method, base and zeros, [zeros, *experts[1:]], parameters=more).values():
        assert torch.isfinite(state).all()


def test_order_of_experts_is_immaterial_where_claimed(method: Method) -> None:
    base, experts = models(method)
    given = parameters(method, len(experts))
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in given.items()}
    one = run(method, base, experts)
    other = run(method, base, experts[::-1], parameters=turned)
    same = all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)
    if method.symmetric:
        assert same


def test_inputs_are_not_changed_and_outputs_are_new(method: Method) -> None:
    base, experts = models(method)
    every = [*([base] if base else []), *experts]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in every]
    merged = run(method, base, experts)
    for state, copy in zip(every, before, strict=True):
        for name in state:
            assert torch.equal(state[name], copy[name])
            assert merged[name].data_ptr() != state[name].data_ptr()
            assert merged[name].shape == state[name].shape


def test_result_is_finite_and_repeatable(method: Method) -> None:
    base, experts = models(method)
    one, two = (run(method, base, experts, seed=3) for _ in range(2))
    for name in one:
        assert torch.isfinite(one[name]).all()
        assert torch.equal(one[name], two[name])


def test_seed_matters_exactly_to_random_methods(method: Method) -> None:
    base, experts = models(method)
    more = {"parameters": {"density": 0.5}} if "density" in method.params else {}
    one, two = (run(method, base, experts, seed=seed, **more) for seed in (1, 2))
    assert torch.equal(one["matrix"], two["matrix"]) != method.random


@pytest.mark.parametrize("size", [16, 100, 997])
def test_block_size_is_immaterial(method: Method, size: int) -> None:
    base, experts = models(method)
    more = {"parameters": {"density": 0.5}} if "density" in method.params else {}
    whole = run(method, base, experts, **more)
    blocks = run(method, base, experts, block_size=size, **more)
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-6)


def settings(method: Method) -> list[dict[str, Any]]:
    """The defaults, then every switch and choice turned, and selections at work."""
    out: list[dict[str, Any]] = [{}]
    for name, param in method.params.items():
        values = [*param.choices, *([True, False] if param.kind is bool else [])]
        out += [{name: value} for value in values if value != param.default]
    if "density" in method.params:
        out += [{**one, "density": 0.4} for one in out]
    if "select_topk" in method.params:
        out += [{**one, "select_topk": 0.4} for one in out]
    return [s for s in out if s.get("granularity") != "model"]


def test_engine_equals_the_naive_driver(method: Method) -> None:
    if method.random:
        pytest.skip("draws its own masks")
    base, experts = models(method)
    for more in settings(method):
        given = {**parameters(method, len(experts)), **more}
        known = complete(method, len(experts), given)
        if method.pooled(known) or getattr(known, "granularity", "") == "model":
            continue
        merged = run(method, base, experts, parameters=more)
        evidence = evidence_for(method, experts, given)
        its = base_evidence_for(method, base, given)
        for name in SHAPES:
            naive = merge_tensor(
                [e[name] for e in experts],
                method.name,
                base and base[name],
                evidence=evidence and [{k: v.get(name) for k, v in e.items()} for e in evidence],
                base_evidence=its and {k: v.get(name) for k, v in its.items()},
                **given,
            )
            close = torch.allclose(merged[name], naive, rtol=1e-4, atol=1e-5)
            assert close, (name, more, merged[name], naive)


def test_flat_methods_can_be_fused(
    method: Method, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if _compile.helpers() is None:
        pytest.skip("no C compiler here")
    base, experts = models(method)
    for more in settings(method):
        plain = run(method, base, experts, parameters=more)
        with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):
            patch.setattr(_memory, "FUSE_FROM_ELEMENTS", 0)
            fused = run(method, base, experts, parameters=more)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    if method.name not in NEEDS_ROWS:
        assert "plain torch" not in caplog.text


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_whole_model_thresholds_keep_the_largest_of_all_tensors(name: str) -> None:
    base = {"small": torch.zeros(50), "large": torch.zeros(5, 10)}
    expert = {"small": torch.arange(1.0, 51.0), "large": torch.arange(51.0, 101.0).reshape(5, 10)}
    given = {"weight": 1.0, "density": 0.4, "granularity": "model"}
    more = {"gamma": 0.2} if name == "breadcrumbs" else {}
    merged = merge_state_dicts([expert], name, base=base, parameters=given | more)
    # 40 of 100 magnitudes: 61 to 100, or 41 to 80 once the 20 largest are gone
    kept = sorted(v for tensor in merged.values() for v in tensor.flatten().tolist() if v)
    first = 41 if more else 61
    assert kept == list(range(first, first + 40))


def test_metadata_is_complete(method: Method) -> None:
    for text in (method.summary, method.formula, method.source, method.variant, method.example):
        assert text.strip()
    *_, recipe = yaml.safe_load_all(method.example)
    assert recipe["merge_method"] == method.name
    for name, param in method.params.items():
        assert param.help, name
        if not param.required:
            assert param.problem(param.default) is None, name


def test_listing_methods_loads_no_torch() -> None:
    code = "import sys, mergewise.methods as m; m.all_methods(); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "'mergewise.methods.ties'" in modules
    assert "'torch'" not in modules
    assert "'numpy'" not in modules
