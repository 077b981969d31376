"""The compiled loop for low-rank changes gives what torch gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_adapters import lora
from small_models import load, random_state, save

from mergewise.checkpoint import ChangedRef, ChangeValues, open_reference
from mergewise.engine import _compile, _low_rank

KINDS = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.skipif(not _compile.available(), reason="no C compiler")


def values_of(folder: Path, rows: int, columns: int, rank: int, dora: bool) -> ChangeValues:
    state = random_state({"m.weight": (rows, columns)}, 0, torch.float32)
    base = save(folder / "base", state)
    adapter = lora(folder / "adapter", state, ["m"], rank=rank, use_dora=dora)
    ref = open_reference(f"{base}+{adapter}").tensors["m.weight"]
    assert isinstance(ref, ChangedRef)
    tensors = load(adapter)
    found = ChangeValues(ref, lambda part: tensors[part.name])
    if dora:
        found.set_norms([found.squares(state["m.weight"].flatten(), 0)])
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 1200),
    rank=st.integers(1, 40),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    dora=st.booleans(),
)
@example(rows=13, columns=640, rank=16, kinds=(KINDS[1], KINDS[1]), ends=(0.0, 1.0), dora=False)
@example(rows=1, columns=70, rank=3, kinds=(KINDS[2], KINDS[0]), ends=(0.1, 0.9), dora=False)
def test_any_block_of_any_type(
    rows: int, columns: int, rank: int, kinds: tuple[torch.dtype, torch.dtype],
    ends: tuple[float, float], dora: bool, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    values = values_of(tmp_path_factory.mktemp("block"), rows, columns, rank, dora)
    last = rows * columns - 1
    start, stop = sorted((int(ends[0] * last), int(ends[1] * last) + 1))
    stop = max(stop, start + 1)
    draw = torch.Generator().manual_seed(rows * columns)
    base = torch.randn(stop - start, generator=draw).to(kinds[0])
    found = torch.full((stop - start,), torch.nan, dtype=kinds[1])
    _low_rank.compute(values, base, start, found)
    wanted = values.apply(base, start)
    step = torch.finfo(kinds[1]).eps if kinds[1] != torch.float32 else 1e-6
    assert torch.allclose(found.float(), wanted, rtol=2 * step, atol=2e-6)


def test_it_runs_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not everything falls back to torch."""
    values = values_of(tmp_path, 20, 100, 4, False)
    wanted = values.apply(torch.zeros(1000), 500)
    found = torch.empty(1000)
    monkeypatch.setattr(ChangeValues, "apply", None)
    _low_rank.compute(values, torch.zeros(1000), 500, found)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3.4e38])
def test_numbers_that_are_not_finite_stay_so(number: float, tmp_path: Path) -> None:
    values = values_of(tmp_path, 12, 128, 4, False)
    base = torch.zeros(12 * 128)
    base[700] = number
    found = torch.empty(12 * 128, dtype=torch.bfloat16)
    _low_rank.compute(values, base, 0, found)
    assert not torch.isfinite(found[700])
    assert torch.isfinite(found).sum() == found.numel() - 1
