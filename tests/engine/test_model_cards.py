"""The card of a merge says how to make it again, and what loads it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from small_adapters import lora
from small_models import llama_config, llama_shapes, random_state, save
from small_packed import fp8_blocks, write_packed

import mergewise
from mergewise.cli import cli

SHAPES = llama_shapes()
UP = "model.layers.0.mlp.up_proj"


def front(out: Path) -> dict[str, Any]:
    return yaml.safe_load((out / "README.md").read_text().split("---\n")[1])


def told(out: Path) -> str:
    lines = (out / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if line.startswith("mergewise merge ")]
    return command


def merged(out: Path, *models: Path | str, **leave: Any) -> Path:
    given = {"merge_method": "linear", "models": [{"model": str(m)} for m in models]}
    out.parent.mkdir(exist_ok=True)
    recipe = out.parent / "recipe.yml"
    recipe.write_text(yaml.safe_dump(given | {"parameters": {"weight": 1.0}}))
    with mergewise.allow(**leave):
        mergewise.merge(str(recipe), out)
    return out


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save(random_state(SHAPES, 0), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(llama_config(SHAPES)))
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    state = random_state(SHAPES, 1)
    state[f"{UP}.weight"], state[f"{UP}.weight_scale_inv"] = fp8_blocks(state[f"{UP}.weight"], 4)
    settings = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    return write_packed(tmp_path / "packed", state, settings, llama_config(SHAPES))


def test_the_command_of_the_card_makes_the_merge_again(
    pickled: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lora(tmp_path / "adapter", random_state(SHAPES, 1), [UP])
    out = merged(tmp_path / "out", pickled, f"{packed}+{adapter}", pickle=True, dequantize=True)
    assert told(out).endswith(" out --allow-pickle --dequantize")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mergekit_config.yml").write_text((out / "mergekit_config.yml").read_text())
    before = (out / "model.safetensors").read_bytes()
    result = CliRunner().invoke(cli, [*shlex.split(told(out))[1:], "--overwrite"])
    assert result.exit_code == 0, result.output
    assert (out / "model.safetensors").read_bytes() == before


def test_leave_that_is_not_needed_is_not_told(packed: Path, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", random_state(SHAPES, 2), llama_config(SHAPES))
    assert told(merged(tmp_path / "a", plain, pickle=True, dequantize=True)).endswith(" a")
    assert told(merged(tmp_path / "b", packed, pickle=True, dequantize=True)).endswith(
        " b --dequantize"
    )


def test_what_loads_the_result(pickled: Path, tmp_path: Path) -> None:
    assert front(merged(tmp_path / "a", pickled, pickle=True))["library_name"] == "transformers"
    weights = tmp_path / "weights.safetensors"
    save_file(random_state(SHAPES, 0), weights)
    assert "library_name" not in front(merged(tmp_path / "b", weights))
    unet = tmp_path / "unet"
    unet.mkdir()
    save_file({"conv_in.weight": torch.ones(2, 2)}, unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert front(merged(tmp_path / "c", unet))["library_name"] == "diffusers"
