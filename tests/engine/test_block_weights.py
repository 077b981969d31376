"""Merges of single-file Stable Diffusion checkpoints with a weight for each block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergewise
from mergewise.cli import cli
from mergewise.plan import build_plan

NAMES = [
    "model.diffusion_model.time_embed.0.weight",
    *(f"model.diffusion_model.input_blocks.{i}.0.weight" for i in range(12)),
    "model.diffusion_model.middle_block.0.weight",
    *(f"model.diffusion_model.output_blocks.{i}.0.weight" for i in range(12)),
    "model.diffusion_model.out.2.weight",
    "first_stage_model.encoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
]


@pytest.fixture
def models(tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    found = []
    for seed, name in enumerate("ab"):
        draw = torch.Generator().manual_seed(seed)
        state = {key: torch.randn(3, 4, generator=draw) for key in NAMES}
        state["model_ema.decay"] = torch.tensor(0.999)
        save_file(state, tmp_path / f"{name}.safetensors")
        found.append(state)
    return found[0], found[1]


def recipe(folder: Path, weight: object) -> dict[str, object]:
    """The community's "weighted sum": A + alpha (B - A)."""
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "a.safetensors"),
        "models": [{"model": str(folder / "b.safetensors"), "parameters": {"weight": weight}}],
    }


def merged(folder: Path, weight: object, out: str = "out") -> dict[str, torch.Tensor]:
    mergewise.merge(recipe(folder, weight), folder / out)
    return load_file(folder / out / "model.safetensors")


def test_one_block_alone(models, tmp_path):
    numbers = [0.0] * 26
    numbers[1 + 4] = 1.0
    result = merged(tmp_path, {"blocks": numbers})
    a, b = models
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, (b if "input_blocks.4." in name else a)[name])


def test_equal_numbers_are_a_plain_weighted_sum(models, tmp_path):
    result = merged(tmp_path, {"blocks": [0.3] * 26})
    plain = merged(tmp_path, 0.3, "plain")
    assert all(torch.equal(result[name], plain[name]) for name in plain)


def test_a_preset(models, tmp_path):
    a, b = models
    result = merged(tmp_path, {"blocks": "GRAD_V", "base": 0.5})
    for name, alpha in {NAMES[0]: 0.5, NAMES[1]: 1.0, NAMES[13]: 0.0, NAMES[14]: 1 / 12,
                        NAMES[-3]: 1.0, NAMES[-2]: 0.5, NAMES[-1]: 0.5}.items():  # fmt: skip
        torch.testing.assert_close(result[name], a[name] + alpha * (b[name] - a[name]))


def test_numbers_for_another_architecture_are_noticed(models, tmp_path):
    for weight in ({"blocks": [0.1] * 26}, {"blocks": [0.1] * 21}):
        assert not any("blocks" in w for w in build_plan(recipe(tmp_path, weight)).warnings)
    small = {n: torch.zeros(1) for n in NAMES if ".10." not in n and ".11." not in n}
    for name in "ab":
        save_file(small, tmp_path / f"{name}.safetensors")
    (warning,) = build_plan(recipe(tmp_path, {"blocks": [0.1] * 26})).warnings
    assert "no tensor belongs to 3 of the blocks (IN10, IN11, OUT10); are these" in warning


def test_explain_names_the_block(models, tmp_path):
    import yaml

    path = tmp_path / "r.yml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, {"blocks": "WRAP08", "base": 0})))
    name = "model.diffusion_model.input_blocks.2.0.weight"
    run = CliRunner().invoke(cli, ["plan", str(path), "--explain", name])
    assert run.exit_code == 0 and "block IN02" in run.output.replace("\n", " ")
