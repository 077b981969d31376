"""More models than the compiled loop's mask of bad inputs has bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergewise import merge_state_dicts
from mergewise.engine import _memory
from mergewise.errors import NonFiniteError

COUNTS = (62, 63, 64, 70)
SIZE = 5000


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def kernels(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    least = 0 if request.param == "compiled" else 1 << 60
    monkeypatch.setattr(_memory, "FUSE_FROM_ELEMENTS", least)


def constants(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.full((SIZE,), float(i))} for i in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_their_mean(count: int) -> None:
    found = merge_state_dicts(constants(count), "linear", parameters={"weight": 1.0})["w"]
    torch.testing.assert_close(found, torch.full((SIZE,), (count - 1) / 2))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("which", [0, -1])
def test_the_one_that_is_not_finite_is_named(count: int, which: int) -> None:
    models = constants(count)
    models[which]["w"][17] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"experts\[{which % count}\] holds NaN"):
        merge_state_dicts(models, "linear", parameters={"weight": 1.0})


@pytest.mark.parametrize("count", COUNTS)
def test_a_result_that_does_not_fit_is_no_models_fault(count: int) -> None:
    models = [{"w": torch.full((SIZE,), 6e4).half()} for _ in range(count)]
    with pytest.raises(NonFiniteError, match="do not fit float16"):
        merge_state_dicts(models, "linear", parameters={"weight": 1.0, "normalize": False})


def test_statistics_count_among_the_inputs() -> None:
    models = constants(40)
    evidence = [{"fisher": {"w": torch.full((SIZE,), i + 1.0)}} for i in range(40)]
    found = merge_state_dicts(models, "fisher", evidence=evidence, parameters={"normalize": False})
    expected = sum(i * (i + 1) for i in range(40)) / sum(i + 1 for i in range(40))
    torch.testing.assert_close(found["w"], torch.full((SIZE,), expected))
