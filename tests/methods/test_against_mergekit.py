"""The same merges as mergekit 0.1.5 did in float32; benchmarks/mergekit_reference made them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from _driver import merge_tensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from inputs import STORED, fingerprint, models  # noqa: E402

CASES: dict[str, Any] = yaml.safe_load((GOLDEN / "cases.yaml").read_text())
EXACT = [name for name, case in CASES.items() if not case.get("random")]
RANDOM = [name for name, case in CASES.items() if case.get("random")]


@pytest.fixture(scope="module")
def made() -> Any:
    return models()


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN / "mergekit-0.1.5.npz") as file:
        return dict(file)


def _for_tensor(value: Any, name: str) -> Any:
    """The value of a filter list for one tensor: the first entry whose text is in its name."""
    if not isinstance(value, list):
        return value
    return next(entry["value"] for entry in value if entry.get("filter", "") in name)


def merge(case: dict[str, Any], made: Any, name: str, seed: int = 0) -> np.ndarray:
    def tensor(model: str) -> torch.Tensor:
        return torch.from_numpy(made[model][name])

    parameters = {
        "lambda_" if key == "lambda" else key: (
            [_for_tensor(v, name) for v in value] if isinstance(value, list) else value
        )
        for key, value in case["parameters"].items()
    }
    base = tensor("base") if case.get("base", True) else None
    experts = [tensor(model) for model in case.get("experts", ["e0", "e1", "e2"])]
    return merge_tensor(experts, case["method"], base, seed, **parameters).numpy()


def test_models_are_those_that_mergekit_merged(made: Any, golden: Any) -> None:
    assert fingerprint(made) == str(golden["fingerprint"])


def test_every_method_has_a_case() -> None:
    from mergewise.methods import all_methods

    theirs = {name for name, m in all_methods().items() if m.variant.startswith("mergekit")}
    assert {case["method"] for case in CASES.values()} == theirs


@pytest.mark.parametrize("name", EXACT)
def test_agrees(name: str, made: Any, golden: Any) -> None:
    case = CASES[name]
    for tensor in STORED:
        ours = merge(case, made, tensor).astype(np.float64)
        theirs = golden[f"{name}/{tensor}"].astype(np.float64)
        anchor = made["base"][tensor] if case.get("base", True) else 0.0
        apart = np.linalg.norm(ours - theirs)
        assert apart <= 1e-5 * np.linalg.norm(theirs), f"{tensor}: {apart}"
        # of what the merge changed, too: half a bit of the base is 1e-5 of a small change
        assert apart <= 1e-4 * np.linalg.norm(theirs - anchor) + 1e-9, f"{tensor}: {apart}"


def _moved(merged: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Share of elements that left the base, and how far elements moved on average."""
    change = np.abs(merged.astype(np.float64) - base)
    return float((change > 0).mean()), float(change.mean())


@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_keep_and_move_as_much(name: str, made: Any, golden: Any) -> None:
    case = CASES[name]
    tensor = "model.embed_tokens.weight"
    base = made["base"][tensor]
    draws = [_moved(merge(case, made, tensor, seed), base) for seed in range(12)]
    kept, size = np.mean(draws, axis=0)
    noise = np.std(draws, axis=0, ddof=1)
    their_kept, their_size = _moved(golden[f"{name}/{tensor}"], base)
    # their one draw has our draws' spread; where rescaling fixes the norm only rounding is left
    assert abs(kept - their_kept) < 5 * noise[0], (kept, their_kept, noise)
    assert abs(size - their_size) < 5 * noise[1] + 1e-5 * size, (size, their_size, noise)
