"""Quantised inputs in merges: adapters on top, memory, plans, and who refuses them."""

import subprocess
import sys

import pytest
import torch
from small_adapters import lora
from small_gguf import info, llama_pairs, raw_file
from small_models import llama_config, llama_shapes, random_state
from small_packed import fp8_blocks, opened, read_all, write_packed

import mergewise
from mergewise.checkpoint import inspect_checkpoint
from mergewise.errors import NotBuiltYetError, RecipeError
from mergewise.plan import build_plan
from mergewise.plan._explain import tensor_dict

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4]}
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def packed(tmp_path):
    """A Llama with quantised up projections, and what all of its tensors stand for."""
    shapes = llama_shapes()
    state, true = {}, {}
    for name, value in random_state(shapes, 0).items():
        state[name] = true[name] = value
        if "up_proj" in name:
            state[name], scale = fp8_blocks(value, 4)
            state[f"{name}_scale_inv"] = scale
            true[name] = state[name].float() * scale.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return write_packed(tmp_path / "packed", state, FP8, llama_config(shapes)), true


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_on_a_packed_base(packed, tmp_path, kind):
    folder, true = packed
    dense = write_packed(tmp_path / "dense", true, None, llama_config(llama_shapes()))
    more = {"use_dora": True} if kind == "dora" else {}
    adapter = lora(tmp_path / "adapter", true, [UP], **more)
    found, wanted = read_all(f"{folder}+{adapter}"), read_all(f"{dense}+{adapter}")
    assert not torch.equal(found[f"{UP}.weight"], true[f"{UP}.weight"])
    for name, value in wanted.items():
        assert torch.equal(found[name].float(), value.float()), name


def test_what_is_odd_about_a_base_is_told_once(packed, tmp_path):
    folder, true = packed
    adapters = [lora(tmp_path / f"adapter{seed}", true, [UP], seed=seed) for seed in (1, 2)]
    models = [{"model": f"{folder}+{adapter}"} for adapter in adapters]
    with mergewise.allow(dequantize=True):
        told = build_plan({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    assert sum("dequantised" in warning for warning in told.warnings) == 1


def test_bytes_read_and_types_are_those_of_the_file(packed, tmp_path):
    folder, _ = packed
    recipe = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    with mergewise.allow(dequantize=True):
        plan = build_plan(recipe)
        summary = inspect_checkpoint(folder)
    stored = {t.name: t for t in summary.tensors}
    assert plan.bytes_read == summary.bytes == sum(t.bytes for t in summary.tensors)
    assert stored[f"{UP}.weight"].stored_as == "F8_E4M3 by 4 x 4"
    assert stored[f"{UP}.weight"].bytes == 24 * 16 + 4 * 6 * 4
    assert summary.stored == {"F8_E4M3 by 4 x 4": 2 * (24 * 16 + 4 * 6 * 4)}
    (source,) = tensor_dict(plan.output, f"{UP}.weight")["sources"]
    assert source["stored_as"] == "F8_E4M3 by 4 x 4" and source["dtype"] == "BF16"


def test_types_are_kept_tensor_by_tensor(packed, tmp_path):
    """Norms of float32 beside matrices of bfloat16, and the base's types where models differ."""
    base = random_state(llama_shapes(), 1)
    base["model.norm.weight"] = base["model.norm.weight"].float()
    expert = {n: t.half() for n, t in random_state(llama_shapes(), 2).items()}
    for name, state in {"base": base, "expert": expert}.items():
        write_packed(tmp_path / name, state, None, llama_config(llama_shapes()))
    models = [str(packed[0]), str(tmp_path / "expert")]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": m, "parameters": {"weight": 0.5}} for m in models],
    }
    with mergewise.allow(dequantize=True):
        mergewise.merge(recipe, tmp_path / "out")
    types = {n: ref.dtype for n, ref in opened(tmp_path / "out").tensors.items()}
    assert types.pop("model.norm.weight") == "F32"
    assert set(types.values()) == {"BF16"}


def test_a_recipe_cannot_allow_it(packed):
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": str(packed[0])}],
        "dequantize": True,
    }
    with pytest.raises(RecipeError):
        build_plan(recipe)
    del recipe["dequantize"]
    with pytest.raises(RecipeError, match="--dequantize"):
        build_plan(recipe)


def test_what_runs_models_refuses_before_any_work(packed, tmp_path):
    from mergewise.evidence import open_model
    from mergewise.transforms import transform

    folder, _ = packed
    with mergewise.allow(dequantize=True):
        with pytest.raises(NotBuiltYetError, match=r"quantised.*mergewise merge RECIPE OUT"):
            mergewise.collect(["input_moments"], folder, [{"text": "a"}], tmp_path / "e")
        with pytest.raises(NotBuiltYetError, match="quantised"):
            open_model(folder)
        with pytest.raises(NotBuiltYetError, match="quantised"):
            transform("batch_norm", folder, tmp_path / "t")


def test_a_guide_that_reads_weights_reads_what_they_stand_for(packed, tmp_path):
    folder, true = packed
    dense = write_packed(tmp_path / "dense", true, None, llama_config(llama_shapes()))
    base = write_packed(
        tmp_path / "base", random_state(llama_shapes(), 1), None, llama_config(llama_shapes())
    )
    found = []
    for expert in (folder, dense):
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": str(expert)}],
            "parameters": {"weight": 1},
        }
        out = tmp_path / f"{expert.name}.yml"
        with mergewise.allow(dequantize=True):
            mergewise.write_recipe(recipe, "metagpt", out)
        found.append(out.read_text().replace(str(expert), "EXPERT"))
    assert found[0].splitlines()[-8:] == found[1].splitlines()[-8:]


MEMORY = """
import resource, sys
import mergewise
recipe = {"merge_method": "passthrough", "models": [{"model": sys.argv[1]}]}
with mergewise.allow(dequantize=True):
    mergewise.merge(recipe, sys.argv[2], workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_a_large_tensor_is_dequantised_in_blocks(tmp_path):
    peaks = []
    for rows in (64, 32_768):
        size = rows * 2048 // 32 * 34
        path = tmp_path / f"{rows}.gguf"
        data = raw_file(llama_pairs(), [info("token_embd.weight", (rows, 2048), 8, 0)])
        with path.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + size)
        run = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"out{rows}")]
        peaks.append(int(subprocess.run(run, capture_output=True, check=True).stdout))
    # 67 M elements: 71 MB packed, 268 MB in float32
    assert peaks[1] - peaks[0] < 40_000
