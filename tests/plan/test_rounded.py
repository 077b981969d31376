"""A LoRA rounded to a narrow type is not of low rank: said in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import lora
from small_models import family, load

import mergewise

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    family(tmp_path, experts=0)
    for i in range(2):
        lora(tmp_path / f"lora{i}", load(tmp_path / "base"), [Q], seed=i, alpha=0.05)
    models = [{"model": f"{tmp_path}/base+{tmp_path}/lora{i}"} for i in range(2)]
    return {"merge_method": "iso_c", "base_model": str(tmp_path / "base"), "models": models}


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ({"dtype": "bfloat16"}, True),
        ({"dtype": "float32"}, False),
        ({"out_dtype": "bfloat16"}, False),
        ({"dtype": "bfloat16", "merge_method": "ties", "parameters": {"weight": 1}}, False),
    ],
)
def test_dtype_is_warned_of(document: dict[str, Any], more: Any, warned: bool) -> None:
    found = mergewise.plan(document | more).warnings
    assert any("out_dtype: bfloat16" in text for text in found) == warned


def test_with_out_dtype_the_change_is_of_low_rank(document: dict[str, Any], tmp_path: Path) -> None:
    base = load(tmp_path / "base")[f"{Q}.weight"].double()
    ranks = []
    for name, more in (("in", {"dtype": "bfloat16"}), ("out", {})):
        mergewise.merge(document | more | {"out_dtype": "float32"}, tmp_path / name)
        change = load(tmp_path / name)[f"{Q}.weight"].double() - base
        values = torch.linalg.svdvals(change)
        ranks.append(int((values > 0.1 * values[0]).sum()))
    assert ranks == [16, 6]
