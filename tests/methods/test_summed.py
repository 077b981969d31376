"""Methods that call their result a weighted sum of task vectors make one."""

from __future__ import annotations

import pytest
import torch

from mergewise.engine import merge_state_dicts
from mergewise.engine._memory import complete_parameters
from mergewise.methods import Method, Settings, all_methods, get_method

CASES = [
    ("linear", {"weight": [0.7, 0.1, 0.2], "normalize": True}),
    ("linear", {"weight": [3.0, 1.0, -0.5], "normalize": True}),
    ("linear", {"weight": [0.5, 0.75, -0.25], "normalize": False}),
    ("task_arithmetic", {"weight": [0.5, -0.2, 1.0]}),
    ("task_arithmetic", {"weight": [0.5, 0.2, 1.0], "normalize": True, "lambda": 0.3}),
    ("task_arithmetic", {"weight": [1.0, -1.0, 0.0], "normalize": True, "rescale": True}),
]


def given_to(method: Method) -> dict[str, object]:
    """Whatever it must be told, and weights."""
    needed = {n for n, p in method.params.items() if p.required and p.per_model}
    numbers = {n: [2, 1, 3] if method.params[n].kind is int else [0.5, 0.2, 0.3] for n in needed}
    weights = {"weight": [0.5, 0.2, 0.3]} if "weight" in method.params else {}
    return numbers | weights


OTHERS = [
    (name, given_to(method))
    for name, method in all_methods().items()
    if type(method).summed is not Method.summed and name not in dict(CASES)
]


@pytest.mark.parametrize(("name", "given"), CASES + OTHERS)
def test_the_sum_is_the_result(name: str, given: dict[str, object]) -> None:
    method = get_method(name)
    draw = torch.Generator().manual_seed(0)
    base, *experts = (torch.randn(5, 7, generator=draw) for _ in range(4))
    chosen = {"base": {"x": base}} if method.base != "ignored" else {}
    found = merge_state_dicts([{"x": e} for e in experts], name, parameters=given, **chosen)
    factors = method.summed(Settings(complete_parameters(method, given, len(experts))))
    assert factors is not None
    wanted = base + sum(f * (e - base) for f, e in zip(factors, experts, strict=True))
    assert torch.allclose(found["x"], wanted, atol=1e-5)


def test_weights_that_are_no_shares_make_no_such_sum() -> None:
    given = Settings({"weight": [0.5, 0.6], "normalize": False})
    assert get_method("linear").summed(given) is None
    assert get_method("ties").summed(given) is None
