"""The same merges as the authors' code; see benchmarks/interference_reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergewise import merge_state_dicts

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from interference_inputs import SHAPES, fingerprint, models  # noqa: E402

# their K of the whole model keeps one element more than its share
_KEPT = (int(0.3 * 360) + 1) / 360
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wudi": ("wudi", {"otherwise": "mean"}),
    "swudi": ("swudi", {}),
    "swudi-llm": ("swudi", {"time": 300.0, "rank_ratio": 0.85, "start": "mean"}),
    "aswudi-participation_sqrt": ("aswudi", {}),
    "aswudi-participation": ("aswudi", {"rank_rule": "participation"}),
    "aswudi-entropy": ("aswudi", {"rank_rule": "entropy"}),
    "aswudi-stable_rank": ("aswudi", {"rank_rule": "stable_rank"}),
    "aswudi-none": ("aswudi", {"rank_rule": "all"}),
    "optmerge-lora": ("optmerge", {"solver": "sgd", "otherwise": "mean"}),
    "optmerge-full": (
        "optmerge",
        {
            "solver": "adam",
            "target": "centred",
            "start": "sum",
            "lambda": 0.1,
            "otherwise": "mean",
        },
    ),
    "doge": ("doge", {"subspace": 3, "density": _KEPT}),
    "opcm": ("opcm", {}),
}


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN / "interference.npz") as file:
        return dict(file)


def test_models_are_those_that_were_merged(golden: Any) -> None:
    assert fingerprint() == str(golden["fingerprint"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_agrees(case: str, dtype: torch.dtype, golden: Any) -> None:
    if dtype == torch.float32 and case == "aswudi-none":
        pytest.skip("divides by eigenvalues near the rounding of its inputs")
    method, given = CASES[case]
    base, *experts = [
        {f"layers.0.{n}": torch.from_numpy(w).to(dtype) for n, w in state.items()}
        for state in (models()[0], *models()[1])
    ]
    merged = merge_state_dicts(experts, method, base=base, parameters=given)
    close = {torch.float64: 1e-7 if case == "aswudi-none" else 1e-12, torch.float32: 3e-5}[dtype]
    for name in SHAPES:
        theirs = torch.from_numpy(golden[f"{case}/{name}"])
        ours, anchor = merged[f"layers.0.{name}"].double(), base[f"layers.0.{name}"].double()
        apart = float((ours - theirs).norm())
        assert apart <= 1e-5 * float(theirs.norm()), name
        assert apart <= close * float((theirs - anchor).norm()) + 1e-15, name
