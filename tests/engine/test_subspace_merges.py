"""Methods of subspaces on files: adapters' small spaces, and a merge of an earlier stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_adapters import lora
from small_models import State, llama_config, llama_shapes, load, random_state, save

import mergewise

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    shapes = llama_shapes()
    state = random_state(shapes, 0, torch.float32)
    return save(tmp_path / "base", state, llama_config(shapes, torch_dtype="float32"))


def merged(base: Path, out: Path, models: list[str], method: str, **given: Any) -> State:
    document = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": model} for model in models],
        "parameters": given,
    }
    mergewise.merge(document, out, device="cpu")
    return load(out)


@pytest.mark.parametrize("method", ["core_space", "knots"])
def test_adapters_keep_to_the_space_that_they_span(tmp_path: Path, base: Path, method: str) -> None:
    state = load(base)
    adapters = [lora(tmp_path / f"a{i}", state, [Q, UP], rank=2, seed=i) for i in range(2)]
    models = [f"{base}+{adapter}" for adapter in adapters]
    plain = merged(base, tmp_path / "sum", models, "task_arithmetic", weight=1.0)
    linear = merged(base, tmp_path / "linear", models, method, rule="sum")
    out = merged(base, tmp_path / "out", models, method)
    for name, weights in state.items():
        torch.testing.assert_close(linear[name], plain[name], rtol=1e-5, atol=1e-6)
        change = (out[name] - weights).double()
        if name.removesuffix(".weight") not in (Q, UP):
            assert not change.any()
            continue
        values = torch.linalg.svdvals(change)
        assert values[3] > 1e-3 * values[0]
        assert values[4] < 1e-5 * values[0]


def test_another_merge_is_boosted_and_calibrated(tmp_path: Path, base: Path) -> None:
    shapes, config = llama_shapes(), llama_config(llama_shapes(), torch_dtype="float32")
    experts = [
        save(tmp_path / f"e{i}", random_state(shapes, i, torch.float32), config) for i in (1, 2)
    ]
    models = [{"model": str(expert)} for expert in experts]
    ties = {
        "name": "first",
        "merge_method": "ties",
        "base_model": str(base),
        "models": models,
        "parameters": {"weight": 1.0, "density": 0.3},
    }
    for method, more, given in (
        ("subspace_boosting", [], {"beta": 0.2}),
        ("svc", models, {"calibrate": "last", "alpha": 0.5}),
    ):
        last = {
            "merge_method": method,
            "base_model": str(base),
            "models": [*more, {"model": "first"}],
            "parameters": given,
        }
        folder = tmp_path / method
        recipe = tmp_path / f"{method}.yml"
        recipe.write_text(yaml.safe_dump_all([ties, last]))
        mergewise.merge(recipe, folder, device="cpu")
        one = load(merge_alone(ties, tmp_path / f"{method}-ties"))
        every = [*(load(expert) for expert in experts)] if more else []
        known = mergewise.merge_state_dicts(
            [*every, one], method, base=load(base), parameters=given
        )
        for name, tensor in load(folder).items():
            torch.testing.assert_close(tensor, known[name], rtol=1e-4, atol=1e-5)


def merge_alone(stage: dict[str, Any], out: Path) -> Path:
    alone = {key: value for key, value in stage.items() if key != "name"}
    mergewise.merge(alone, out, device="cpu")
    return out
