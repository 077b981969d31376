"""The memory a plan is estimated to take, and the workers that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import write_means
from small_models import near, recipe, save

from mergewise import plan
from mergewise.engine import _budget, choose_workers, estimate
from mergewise.errors import MergewiseError
from mergewise.methods import get_method

SIZE = (1000, 300)


def models(root: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    base = {f"layers.{i}.w": torch.zeros(SIZE, dtype=dtype) for i in range(12)}
    for i, name in enumerate(("base", "expert_a", "expert_b")):
        save(root / name, near(base, i))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    return models(tmp_path_factory.mktemp("models"))


def parts(root: Path, method: str, **more: Any) -> tuple[int, int]:
    found = estimate(plan(recipe(root, method, **more)))
    return found.fixed, found.per_worker


def test_what_a_method_keeps_between_its_passes(root: Path) -> None:
    none = parts(root, "linear")[0]
    assert parts(root, "task_arithmetic")[0] == none
    tensor = parts(root, "ties")[0] - none
    model = parts(root, "ties", parameters={"density": 0.4, "granularity": "model"})[0] - none
    assert 0 < tensor < model
    masks = parts(root, "della")[0] - none
    assert masks == 2 * 2 * 300_000 // 8, "two experts, two tensors, a bit an element"
    assert parts(root, "ties", parameters={"density": 1.0})[0] == none, "all are kept"


def test_what_a_worker_holds(root: Path, tmp_path: Path) -> None:
    assert parts(root, "della")[1] > parts(root, "ties")[1] > parts(root, "linear")[1]
    wide = models(tmp_path, torch.float64)
    assert parts(wide, "linear")[1] > 1.5 * parts(root, "linear")[1]


def test_what_cannot_be_fused_holds_its_intermediate_results(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_budget, "FUSE_FROM_ELEMENTS", 0)
    monkeypatch.setattr(_budget._compile, "available", lambda: True)
    size = SIZE[0] * SIZE[1]
    fused = parts(root, "consensus", parameters={"least": 1})[1]
    assert parts(root, "ext_sub")[1] > fused + 60 * size
    wide = models(tmp_path, torch.float64)
    assert parts(wide, "linear")[1] > 2 * 8 * 2 * size, "loops are for float32"


def regmean(root: Path, rows: int, inputs: int) -> Any:
    models = []
    for i in range(2):
        save(root / str(i), {"w": torch.zeros(rows, inputs)})
        file = root / f"{i}.safetensors"
        write_means(file, get_method("regmean"), {"input_gram": {"w": torch.eye(inputs)}})
        models.append({"model": str(root / str(i)), "evidence": str(file)})
    return estimate(plan({"merge_method": "regmean", "models": models}))


def test_matrices_beside_a_weight_count_whatever_its_shape(tmp_path: Path) -> None:
    side = 1000
    square = regmean(tmp_path / "square", side, side).per_worker
    assert square > (4 * 2 + 8 * 2) * side**2, "two matrices, their sum and its factor"
    tall = regmean(tmp_path / "tall", 6 * side, side).per_worker
    assert tall < 1.5 * square, "rows are solved in blocks"


def test_workers_stay_within_the_budget(root: Path) -> None:
    planned = plan(recipe(root, "ties"))
    memory = estimate(planned)
    assert choose_workers(planned, 8, memory.peak(3)) == 3
    assert choose_workers(planned, 2, memory.peak(3)) == 2
    with pytest.raises(MergewiseError, match=r"more than the .* of --memory"):
        choose_workers(planned, 1, memory.peak(1) - 1)
