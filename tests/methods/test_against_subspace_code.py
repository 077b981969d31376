"""The same merges as the authors' code did; benchmarks/subspace_reference says how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from subspace_inputs import COLUMNS, EXPERTS, LAYERS, RANKS, ROWS, dense, low_rank  # noqa: E402


def more_than(density: float, count: int) -> float:
    """The authors' code keeps one element more than the share of them that it is told."""
    return (int(density * count) + 1.5) / count


SVC = {"weight": 0.3, "alpha": 0.1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tsv_m": ("tsv_m", {}),
    "iso_c": ("iso_c", {}),
    "iso_cts": ("iso_cts", {}),
    "iso_cts_half": ("iso_cts", {"common_space_fraction": 0.5}),
    "star": ("star", {}),
    "star_80": ("star", {"eta": 0.8}),
    "cart": ("cart", {}),
    "cart_third": ("cart", {"rank": 0.3, "lambda": 0.1}),
    "subspace_boosting": ("subspace_boosting", {}),
    "subspace_boosting_fifth": ("subspace_boosting", {"beta": 0.2}),
    "svc": ("svc", SVC),
    "svc_one": ("svc", {}),
    "knots": ("knots", {"density": more_than(0.2, ROWS * COLUMNS)}),
    "knots_low_rank": ("knots", {"density": more_than(0.2, sum(RANKS) * COLUMNS)}),
    "core_sum": ("core_space", {"rule": "sum"}),
    "core_mean": ("core_space", {"rule": "mean"}),
    "core_tsv": ("core_space", {"rule": "tsv"}),
    "core_tsv_iso": ("core_space", {}),
    "core_iso": ("core_space", {"rule": "iso"}),
}


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN / "subspaces.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def close(merged: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest element: the authors' code decomposes in float32."""
    size = float(expected.abs().max())
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_authors_code(name: str, golden: Any) -> None:
    method, given = CASES[name]
    few = name.startswith("core") or name.endswith("low_rank")
    deltas = [torch.from_numpy(d) for d in (low_rank() if few else dense()[LAYERS[0]])]
    close(merge_tensor(deltas, method, torch.zeros(ROWS, COLUMNS), **given), golden[name])


def test_a_threshold_over_the_model_is_that_of_the_authors_code(golden: Any) -> None:
    made = dense()
    names = {layer: f"model.{layer}.weight" for layer in LAYERS}
    base = {name: torch.zeros(ROWS, COLUMNS) for name in names.values()}
    experts = [
        {names[layer]: torch.from_numpy(made[layer][i]) for layer in LAYERS} for i in range(EXPERTS)
    ]
    count = len(LAYERS) * ROWS * COLUMNS
    given = {"granularity": "model", "density": more_than(0.2, count)}
    merged = merge_state_dicts(experts, "knots", base=base, parameters=given)
    for layer, name in names.items():
        close(merged[name], golden[f"knots_model_{layer}"])
