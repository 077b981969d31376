"""Configs are compared by what they say, not by which version of transformers wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import llama_config, llama_shapes, random_state, save

from mergewise import plan

SHAPES = llama_shapes()
GEMMA_5 = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}


def warned(root: Path, one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    for seed, (name, more) in enumerate((("one", one), ("other", other))):
        config = None if more is None else llama_config(SHAPES, **more)
        save(root / name, random_state(SHAPES, seed), config)
    models = [{"model": str(root / name)} for name in ("one", "other")]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    return "\n".join(plan(document).warnings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        ),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}, GEMMA_5),
        ({"head_dim": 4}, {}),
        ({"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    ],
)
def test_one_meaning_in_two_forms(one: dict[str, Any], other: dict[str, Any], tmp_path: Path):
    assert warned(tmp_path, one, other) == ""


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 501.0}}, "rope_theta"),
        ({"rope_theta": 1e6, "rope_local_base_freq": 2e4}, GEMMA_5, "rope_local_base_freq"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            "rope_scaling",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "rope_scaling"),
        ({"head_dim": 8}, {}, "head_dim"),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
    ],
)
def test_two_meanings(one: dict[str, Any], other: dict[str, Any], key: str, tmp_path: Path):
    assert f"differs from {tmp_path / 'one'} in config {key};" in warned(tmp_path, one, other)


def test_a_config_that_the_output_does_not_get(tmp_path: Path) -> None:
    told = warned(tmp_path, None, {})
    assert "one has no config.json, so the output has none" in told
    assert f"{tmp_path / 'other'} has one: name it as base_model, or first" in told
