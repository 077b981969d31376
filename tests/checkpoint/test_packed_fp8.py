"""Eight-bit floating point: every layout of scales, against arithmetic by hand and transformers."""

import json

import pytest
import torch
from small_models import llama_config, llama_shapes, random_state
from small_packed import fp8_blocks, opened, read_all, write_packed

import mergewise
from mergewise.checkpoint import FileReader, PackedRef, open_checkpoint
from mergewise.errors import CheckpointError

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4], "activation_scheme": "dynamic"}


def quantised_llama(folder, block=4, seed=0, settings=FP8):
    """A Llama whose projections are quantised, and the state that they stand for."""
    shapes = llama_shapes(hidden=18, inner=27)
    state, true = {}, {}
    for name, value in random_state(shapes, seed).items():
        true[name] = value
        state[name] = value
        if name.endswith("_proj.weight"):
            codes, scale = fp8_blocks(value, block)
            state[name], state[f"{name}_scale_inv"] = codes, scale
            spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
            true[name] = codes.float() * spread[: value.shape[0], : value.shape[1]]
    return write_packed(folder, state, settings, llama_config(shapes)), true


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].float(), value.float()), name


@pytest.mark.parametrize("step", [1, 7, 50, 10_000])
def test_scales_by_blocks_that_do_not_fill_the_matrix(tmp_path, step):
    folder, true = quantised_llama(tmp_path / "m")
    same(read_all(folder, step), true)


def test_without_leave_the_error_says_how_to_ask(tmp_path):
    folder, _ = quantised_llama(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"'fp8'.*--dequantize"):
        open_checkpoint(folder)


def test_scales_that_the_config_is_silent_about_are_found(tmp_path):
    folder, true = quantised_llama(tmp_path / "m", block=3, settings=None)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv.*--dequantize"):
        open_checkpoint(folder)
    same(read_all(folder), true)


def test_blocks_that_nothing_says_the_size_of_are_refused(tmp_path):
    folder, _ = quantised_llama(tmp_path / "m", settings={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match="does not fit"):
        opened(folder)


@pytest.mark.parametrize(
    "scale", [(), (1,), (1, 1), (6,), (6, 1), (3, 2), (1, 8)], ids=lambda s: str(list(s))
)
def test_a_scale_for_the_tensor_a_row_or_a_block(tmp_path, scale):
    codes = torch.randn(6, 8).to(torch.float8_e4m3fn)
    by = torch.rand(scale) + 0.5
    state = {"a.weight": codes, "a.weight_scale": by, "a.input_scale": torch.ones(())}
    folder = write_packed(tmp_path / "m", state, {"quant_method": "fp8"})
    spread = by.reshape(6, 1) if scale == (6,) else by
    if len(spread.shape) == 2:
        spread = spread.repeat_interleave(6 // spread.shape[0], 0)
        spread = spread.repeat_interleave(8 // spread.shape[1], 1)
    same(read_all(folder), {"a.weight": codes.float() * spread})
    assert any("a.input_scale" in warning for warning in opened(folder).warnings)


def test_stacked_experts(tmp_path):
    codes = torch.randn(3, 6, 8).to(torch.float8_e4m3fn)
    by = torch.rand(3, 3, 2) + 0.5
    state = {"e.gate_up_proj": codes, "e.gate_up_proj_scale_inv": by}
    folder = write_packed(tmp_path / "m", state, {**FP8, "weight_block_size": [2, 4]})
    spread = by.repeat_interleave(2, 1).repeat_interleave(4, 2)
    for step in (5, 24, 1000):
        same(read_all(folder, step), {"e.gate_up_proj": codes.float() * spread})


def test_exponents_as_scales(tmp_path):
    codes = torch.randn(4, 64).to(torch.float8_e4m3fn)
    exponents = torch.randint(120, 130, (4, 2), dtype=torch.uint8)
    state = {"a.weight": codes, "a.weight_scale_inv": exponents}
    folder = write_packed(tmp_path / "m", state, {"quant_method": "fp8"})
    by = (exponents.double() - 127).exp2().float().repeat_interleave(32, 1)
    same(read_all(folder), {"a.weight": codes.float() * by})


def test_transformers_dequantises_to_the_same(tmp_path):
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    codes, scale = fp8_blocks(torch.randn(16, 24), 8)
    state = {"a.weight": codes, "a.weight_scale_inv": scale}
    folder = write_packed(tmp_path / "m", state, {**FP8, "weight_block_size": [8, 8]})
    theirs = finegrained.Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    same(read_all(folder), {"a.weight": theirs})


def test_a_packed_tensor_says_what_it_is_and_cannot_be_read_raw(tmp_path):
    folder, _ = quantised_llama(tmp_path / "m")
    checkpoint = opened(folder)
    ref = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(ref, PackedRef)
    assert (ref.dtype, ref.shape) == ("BF16", (27, 18))
    assert ref.nbytes == 27 * 18 + 4 * 7 * 5
    assert ref.stored_as == "F8_E4M3 by 4 x 4"
    assert checkpoint.config is not None and "quantization_config" not in checkpoint.config
    with (
        FileReader(checkpoint.stamps) as reader,
        pytest.raises(CheckpointError, match="stored as F8_E4M3"),
    ):
        reader.read_into(ref, 0, memoryview(bytearray(4)))


BAD = {
    "no scale": ({"a.weight": torch.zeros(2, 4).to(torch.float8_e4m3fn)}, "no scale beside"),
    "a scale that does not fit": (
        {
            "a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
            "a.weight_scale": torch.ones(3, 3),
        },
        "does not fit",
    ),
    "a scale of integers": (
        {
            "a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
            "a.weight_scale": torch.ones(4, dtype=torch.int32),
        },
        "has type I32",
    ),
    "a vector": (
        {"a.weight": torch.zeros(4).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1)},
        "must be a matrix",
    ),
    "empty": (
        {
            "a.weight": torch.zeros(0, 4).to(torch.float8_e4m3fn),
            "a.weight_scale": torch.ones(1),
        },
        "holds nothing",
    ),
    "nothing quantised": ({"a.weight": torch.zeros(2, 2)}, "no tensor is"),
    "a scale of nothing": (
        {
            "a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
            "a.weight_scale": torch.ones(1),
            "b.weight_scale": torch.ones(1),
        },
        "belongs to no quantised weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(tmp_path, case):
    state, message = BAD[case]
    folder = write_packed(tmp_path / "m", state, {"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=message):
        opened(folder)


@pytest.mark.parametrize("size", [[0, 4], [4], "4", [4, -1], [2**40, 4], [1.5, 4], [True, 4]])
def test_block_sizes_are_checked(tmp_path, size):
    folder, _ = quantised_llama(tmp_path / "m", settings={**FP8, "weight_block_size": size})
    with pytest.raises(CheckpointError, match="must be two counts"):
        opened(folder)


def test_a_merge_of_a_quantised_expert_with_a_plain_base(tmp_path):
    folder, true = quantised_llama(tmp_path / "expert")
    base = random_state(llama_shapes(hidden=18, inner=27), 1)
    write_packed(tmp_path / "base", base, None, llama_config(base_shapes(base)))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(folder), "parameters": {"weight": 0.5}}],
    }
    with mergewise.allow(dequantize=True):
        mergewise.merge(recipe, tmp_path / "out")
    out = read_all(tmp_path / "out")
    for name, value in base.items():
        wanted = value.float() + 0.5 * (true[name].float() - value.float())
        assert torch.equal(out[name], wanted.to(torch.bfloat16)), name


def base_shapes(state):
    return {n: tuple(t.shape) for n, t in state.items()}


def test_dequantised_once_it_is_a_plain_model(tmp_path):
    folder, true = quantised_llama(tmp_path / "m")
    recipe = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    with mergewise.allow(dequantize=True):
        mergewise.merge(recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"
    plain = open_checkpoint(tmp_path / "out")
    assert {ref.dtype for ref in plain.tensors.values()} == {"BF16"}
    same(read_all(tmp_path / "out"), {n: t.to(torch.bfloat16) for n, t in true.items()})
