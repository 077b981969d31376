"""Adapters trained under the names that transformers 5 has in memory, on bases in older ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers
from _zoo import BY_ID
from safetensors.torch import load_file, save_file

from mergewise import merge
from mergewise.errors import RecipeError

peft = pytest.importorskip("peft")
TARGETS = {
    "ViT": ["q_proj", "fc1"],
    "DINOv2": ["q_proj", "v_proj"],
    "Gemma-3": ["q_proj", "fc1"],
    "LLaVA": ["q_proj", "down_proj"],
    "Qwen2-VL": ["q_proj", "qkv"],
    "GPT-NeoX": ["query_key_value", "lm_head"],
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_renamed_model(kind: str, tmp_path: Path) -> None:
    entry = BY_ID[kind]
    model = entry.make()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=TARGETS[kind], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    wanted = entry.run(adapted.merge_and_unload())
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    merge({"merge_method": "passthrough", "models": [{"model": reference}]}, tmp_path / "out")
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tmp_path / "base" / "model.safetensors").keys()
    )
    loaded = getattr(transformers, entry.model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(entry.run(loaded), wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_something_else_is_refused(tmp_path: Path) -> None:
    entry = BY_ID["ViT"]
    model = entry.make()
    model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["fc1"], r=2))
        adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n.replace("fc1", "fc9"): t for n, t in load_file(file).items()}, file)
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    with pytest.raises(RecipeError, match=r"are not in the base.*fc9"):
        merge({"merge_method": "passthrough", "models": [{"model": reference}]}, tmp_path / "out")
