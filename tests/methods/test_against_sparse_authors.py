"""The same merges as the authors' code did; see benchmarks/sparse_reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergewise import merge_state_dicts
from mergewise.methods.emr import emr_rescaler

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from inputs import fingerprint, models  # noqa: E402

EXPERTS = ("e0", "e1", "e2")
NUMBERS = 19616
# the authors' trimming keeps one element more than a fifth
TRIMMED = (int(0.2 * NUMBERS) + 1.5) / NUMBERS
MODEL = {"granularity": "model"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ties": ("ties", {"weight": 1.0, "density": TRIMMED, **MODEL}),
    "magmax": ("magmax", {}),
    "consensus_1": ("consensus", {"least": 1}),
    "consensus_2": ("consensus", {"least": 2}),
    "consensus_3": ("consensus", {"least": 3}),
    "emr": ("emr", {}),
    "pcb_sum": ("pcb", {}),
    "pcb_pairs": ("pcb", {"density": 0.05, "clip": 0.01, "inter": "pairs"}),
    "pcb_normalized": ("pcb", {"density": 0.05, "clip": 0.01, "inter": "normalized"}),
    "breadcrumbs": (
        "breadcrumbs",
        {"weight": 1.0, "lambda": 0.3, "density": 0.25, "gamma": 0.1, "granularity": "row"},
    ),
    "sce_weights": ("sce", {"select_topk": 0.1, "selects": "weights"}),
    "widen": ("widen", {}),
}


@pytest.fixture(scope="module")
def made() -> Any:
    found = models()
    return {
        name: {key: torch.from_numpy(value) for key, value in model.items()}
        for name, model in found.items()
    }


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN / "sparse-methods.npz") as file:
        return dict(file)


def sampled(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.flatten().numpy()
    return flat[:: max(1, len(flat) // 64)][:64]


def test_models_are_those_that_were_merged(golden: Any) -> None:
    found = models()
    assert fingerprint(found) == str(golden["fingerprint"])
    assert sum(tensor.size for tensor in found["base"].values()) == NUMBERS


@pytest.mark.parametrize("case", CASES)
def test_same_as_the_authors(case: str, made: Any, golden: Any) -> None:
    method, parameters = CASES[case]
    experts = [made[name] for name in EXPERTS]
    merged = merge_state_dicts(experts, method, base=made["base"], parameters=parameters)
    if method == "widen":  # the code looks at the head by hidden unit, at embeddings by token
        name = "lm_head.weight"
        head = merge_state_dicts(
            [{name: expert[name]} for expert in experts],
            method,
            base={name: made["base"][name]},
            parameters={"embeddings": "hidden"},
        )
        merged |= head
    found = np.concatenate([sampled(merged[name]) for name in sorted(merged)])
    np.testing.assert_allclose(found, golden[case], rtol=1e-5, atol=1e-7)


def test_emr_rescalers_of_the_code(made: Any, golden: Any) -> None:
    names = sorted(made["base"])
    experts = [made[name] for name in EXPERTS]
    merged = merge_state_dicts(experts, "emr", base=made["base"])
    unified = [merged[name] - made["base"][name] for name in names]
    for expert, factor in zip(experts, golden["emr_rescalers"], strict=True):
        deltas = [expert[name] - made["base"][name] for name in names]
        assert emr_rescaler(deltas, unified, over="tensors") == pytest.approx(factor, rel=1e-4)
