"""Models of one architecture in different layouts on disk: read under the base's names."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from _zoo import BY_ID, Entry
from safetensors.torch import load_file, save_file
from small_adapters import lora

from mergewise import merge, plan
from mergewise.errors import RecipeError

State = dict[str, torch.Tensor]
RENAMED = ("GPT-NeoX", "ViT", "DINOv2", "Swin", "LLaVA", "Qwen2-VL", "Qwen2.5-VL", "Gemma-3")
PACKED = ("Mixtral", "Qwen2-MoE", "Qwen3-MoE", "DeepSeek-V2", "DeepSeek-V3")


def saved(entry: Entry, root: Path) -> None:
    """base and expert as first released, and as in memory."""
    for name, model in {"base": entry.make(), "expert": entry.expert(1)}.items():
        model.save_pretrained(root / name)
        model.save_pretrained(root / f"{name}_new", save_original_format=False)


def recipe(base: Path, *experts: Path, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(folder)} for folder in experts],
        "parameters": {"weight": 0.5},
        **more,
    }


def merged(out: Path, *models: Path) -> State:
    merge(recipe(*models), out)
    return load_file(out / "model.safetensors")


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [*RENAMED, *PACKED])
def test_either_layout_gives_the_same(kind: str, tmp_path: Path) -> None:
    saved(BY_ID[kind], tmp_path)
    old, new = (tmp_path / "expert", tmp_path / "expert_new")
    assert (
        load_file(old / "model.safetensors").keys() != load_file(new / "model.safetensors").keys()
    )
    for base in ("base", "base_new"):
        alike = merged(tmp_path / f"{base}_a", tmp_path / base, new if "new" in base else old)
        mixed = merged(tmp_path / f"{base}_b", tmp_path / base, old if "new" in base else new)
        assert same(mixed, alike)
        cls = getattr(transformers, BY_ID[kind].model)
        _, info = cls.from_pretrained(tmp_path / f"{base}_b", output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_plan_says_so(tmp_path: Path) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    found = plan(recipe(tmp_path / "base", tmp_path / "expert_new"))
    assert any("names its tensors otherwise than" in text for text in found.warnings)
    assert all(len(tensor.inputs) == 2 for tensor in found.output.tensors.values())


def test_layers_are_counted_in_the_bases_names(tmp_path: Path) -> None:
    saved(BY_ID["LLaVA"], tmp_path)
    document = recipe(tmp_path / "base", tmp_path / "expert_new")
    document["parameters"] = {"weight": [0, 1]}
    tensors = plan(document).output.tensors
    name = "language_model.model.layers.{}.mlp.up_proj.weight"
    assert [tensors[name.format(i)].values["weight"][0] for i in range(3)] == [0, 0.5, 1]


def test_a_body_and_a_whole_model(tmp_path: Path) -> None:
    """A bare model's names lack the prefix; what it has none of is still reported."""
    entry = BY_ID["Llama"]
    saved(entry, tmp_path)
    entry.expert(1).model.save_pretrained(tmp_path / "body")
    with pytest.raises(RecipeError, match=r"1 tensor not in \S+body: lm_head.weight"):
        plan(recipe(tmp_path / "base", tmp_path / "body"))
    document = recipe(tmp_path / "base", tmp_path / "body", exclude=["lm_head.weight"])
    merge(document, tmp_path / "out")
    whole = recipe(tmp_path / "base", tmp_path / "expert", exclude=["lm_head.weight"])
    merge(whole, tmp_path / "whole")
    assert same(*(load_file(tmp_path / n / "model.safetensors") for n in ("out", "whole")))


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(document)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["NoSuchModel"]}, "has no class for it"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers.* is 1,000,000,000, more than"),
        ({"num_local_experts": 10**8}, "num_local_experts.* is 100,000,000, more than"),
        ({"num_labels": 10**9}, "num_labels.* is 1,000,000,000, more than"),
        ({"num_hidden_layers": 2000, "num_local_experts": 2000}, "2,000 layers of 2,000 experts"),
        ({"hidden_size": 33, "num_attention_heads": -5}, "its config does not make a Mixtral"),
    ],
)
def test_no_conversion_is_explained(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    edited(tmp_path / "base", **changes)
    found = refusal(recipe(tmp_path / "base", tmp_path / "expert_new"))
    assert "name their tensors differently" in found and "save_original_format=False" in found
    assert "experts.0.w1.weight" in found and "mlp.experts.down_proj" in found
    assert re.search(reason, found), found


def test_adapters_on_experts_that_are_put_together(tmp_path: Path) -> None:
    """Parts of a packed tensor that an adapter changes are computed as they are read."""
    saved(BY_ID["Mixtral"], tmp_path)
    state = load_file(tmp_path / "expert" / "model.safetensors")
    modules = [f"model.layers.{i}.block_sparse_moe.experts.{j}.w2" for i in (0, 2) for j in (1, 3)]
    adapter = lora(tmp_path / "adapter", state, modules)
    reference = Path(f"{tmp_path / 'expert'}+{adapter}")
    old = merged(tmp_path / "old", tmp_path / "base", reference)
    new = merged(tmp_path / "new", tmp_path / "base_new", reference)
    plain = merged(tmp_path / "plain", tmp_path / "base_new", tmp_path / "expert")
    for layer in range(3):
        alone = [
            old[f"model.layers.{layer}.block_sparse_moe.experts.{j}.w2.weight"] for j in range(4)
        ]
        name = f"model.layers.{layer}.mlp.experts.down_proj"
        torch.testing.assert_close(new[name], torch.stack(alone), rtol=0, atol=1e-6)
        assert torch.equal(new[name], plain[name]) == (layer == 1)


def test_without_transformers_the_next_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = refusal(recipe(tmp_path / "base", tmp_path / "expert_new"))
    assert "pip install 'mergewise[hf]'" in found


def test_other_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    state = load_file(tmp_path / "expert_new" / "model.safetensors")
    for name, value in state.items():
        if name.endswith("gate_up_proj"):
            state[name] = value[:3].clone()
    save_file(state, tmp_path / "expert_new" / "model.safetensors")
    found = refusal(recipe(tmp_path / "base", tmp_path / "expert_new"))
    assert "6 tensors not in" in found and "experts.3.w1.weight" in found
    found = refusal(recipe(tmp_path / "base_new", tmp_path / "expert_new"))
    assert "gate_up_proj" in found and "shape [3, " in found


def test_a_part_of_another_type_is_refused(tmp_path: Path) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    state = load_file(tmp_path / "expert" / "model.safetensors")
    odd = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    state[odd] = state[odd].bfloat16()
    save_file(state, tmp_path / "expert" / "model.safetensors")
    found = refusal(recipe(tmp_path / "base_new", tmp_path / "expert"))
    assert "its parts are of different types" in found


def test_code_beside_a_model_is_not_run(tmp_path: Path) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name in ("base", "expert_new"):
        (tmp_path / name / "evil.py").write_text(code)
        edited(tmp_path / name, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    plan(recipe(tmp_path / "base", tmp_path / "expert_new"))
    assert not (tmp_path / "ran").exists()


def test_models_in_one_layout_need_no_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(BY_ID["Mixtral"], tmp_path)
    shutil.rmtree(tmp_path / "base")
    monkeypatch.setitem(sys.modules, "transformers", None)
    plan(recipe(tmp_path / "base_new", tmp_path / "expert_new"))
