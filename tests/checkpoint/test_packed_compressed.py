"""Every format of compressed-tensors that is read, against the package's own decompression."""

import pytest
import torch
from small_packed import opened, read_all, write_packed

from mergewise.checkpoint import PackedRef
from mergewise.errors import CheckpointError, NotBuiltYetError

ct = pytest.importorskip("compressed_tensors")
quantization = pytest.importorskip("compressed_tensors.quantization")
compressors = pytest.importorskip("compressed_tensors.compressors")


def settings(form, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def compressed(form, weight, scale, zero=None, more=None, **weights):
    """The stored tensors of one weight, and what the package says they stand for."""
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    args = quantization.QuantizationArgs(**weights)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": weight, "weight_scale": scale, **(more or {})}
    if zero is not None:
        state["weight_zero_point"] = zero
    stored = compressor.compress(state, scheme)
    back = compressor.decompress(dict(stored), scheme)["weight"]
    return {f"a.{name}": value for name, value in stored.items()}, back


def scales(weight, block, most):
    """The largest of each block over `most`."""
    rows, columns = weight.shape
    parts = weight.float().view(rows // block[0], block[0], columns // block[1], block[1])
    return (parts.abs().amax(dim=(1, 3)) / most).to(weight.dtype)


def check(folder, stored, back, config, tolerance=0.0):
    plain = torch.randn(3, 4).to(torch.bfloat16)
    folder = write_packed(folder, {**stored, "lm_head.weight": plain}, config)
    for step in (7, 64, 100_000):
        found = read_all(folder, step)
        assert found.keys() == {"a.weight", "lm_head.weight"}
        assert torch.equal(found["lm_head.weight"], plain)
        rounded = found["a.weight"].to(back.dtype)
        assert (rounded - back).abs().max() <= tolerance * back.abs().max()


@pytest.mark.parametrize(
    ("strategy", "block"),
    [("channel", (1, 64)), ("tensor", (12, 64)), ("block", (4, 16)), ("group", (1, 16))],
)
@pytest.mark.parametrize("form", ["float-quantized", "int-quantized"])
def test_eight_bits(tmp_path, form, strategy, block):
    torch.manual_seed(0)
    weight = torch.randn(12, 64, dtype=torch.bfloat16)
    kind = "float" if form == "float-quantized" else "int"
    scale = scales(weight, block, 448 if kind == "float" else 127)
    args = {"num_bits": 8, "type": kind, "strategy": strategy}
    if strategy == "block":
        args["block_structure"] = list(block)
    if strategy == "group":
        args["group_size"] = block[1]
    given = scale.reshape(1) if strategy == "tensor" else scale
    stored, back = compressed(form, weight, given, **args)
    check(tmp_path / "m", stored, back, settings(form, **args))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_in_words(tmp_path, bits, zeros):
    torch.manual_seed(bits)
    weight = torch.randn(40, 96, dtype=torch.bfloat16)
    scale = scales(weight, (1, 32), 2 ** (bits - 1))
    half = 2 ** (bits - 1)
    zero = torch.randint(-half, half, (40, 3), dtype=torch.int8) if zeros else None
    args = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32}
    args["symmetric"] = not zeros
    stored, back = compressed("pack-quantized", weight, scale, zero, **args)
    check(tmp_path / "m", stored, back, settings("pack-quantized", **args))


def test_a_scale_for_each_row_of_words(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 64, dtype=torch.float16)
    args = {"num_bits": 4, "type": "int", "strategy": "channel"}
    stored, back = compressed("pack-quantized", weight, scales(weight, (1, 64), 8), **args)
    check(tmp_path / "m", stored, back, settings("pack-quantized", **args))


def test_columns_in_the_order_of_activations(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 64, dtype=torch.bfloat16)
    args = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    scale = scales(weight, (1, 16), 8)
    stored, _ = compressed("pack-quantized", weight, scale, **args)
    order = torch.randperm(64) // 16
    codes = torch.randint(-8, 8, (6, 64), dtype=torch.int8)
    words = ((codes.long() + 8).view(6, 8, 8) << torch.arange(0, 32, 4)).sum(-1)
    stored["a.weight_packed"] = torch.where(words > 2**31 - 1, words - 2**32, words).int()
    stored["a.weight_g_idx"] = order.int()
    back = (codes.float() * scale[:, order].float()).to(torch.bfloat16)
    check(tmp_path / "m", stored, back, settings("pack-quantized", **args))
    stored["a.weight_g_idx"] = torch.full((64,), 4, dtype=torch.int32)
    folder = write_packed(tmp_path / "bad", stored, settings("pack-quantized", **args))
    with pytest.raises(CheckpointError, match="numbers from 0 to 3"):
        read_all(folder)


def test_four_bit_floating_point(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 64, dtype=torch.bfloat16)
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    args |= {"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn}
    over = 6 * 448 / weight.abs().max().float().reshape(1)
    scale = scales(weight, (1, 16), 6).float() * over
    more = {"weight_global_scale": over}
    stored, back = compressed("nvfp4-pack-quantized", weight, scale, None, more, **args)
    config = settings("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16)
    # the package rounds the scale to bfloat16 before it divides and multiplies, we at the end
    check(tmp_path / "m", stored, back, config, 2**-8)


def test_four_bits_with_exponents(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 64, dtype=torch.bfloat16)
    args = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    args |= {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
    scale = scales(weight, (1, 32), 4).float().log2().ceil().exp2().to(torch.bfloat16)
    stored, back = compressed("mxfp4-pack-quantized", weight, scale, **args)
    config = settings("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32)
    check(tmp_path / "m", stored, back, config)


def test_eight_bits_with_exponents(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 64, dtype=torch.bfloat16)
    args = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    args |= {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
    scale = scales(weight, (1, 32), 256).float().log2().ceil().exp2().to(torch.bfloat16)
    stored, back = compressed("mxfp8-quantized", weight, scale, **args)
    config = settings("mxfp8-quantized", num_bits=8, type="float", group_size=32)
    check(tmp_path / "m", stored, back, config)


def packed(**changes):
    """A weight of 4-bit integers, [6, 64] in groups of 16, with changes."""
    state = {
        "a.weight_packed": torch.zeros(6, 8, dtype=torch.int32),
        "a.weight_scale": torch.ones(6, 4),
        "a.weight_shape": torch.tensor([6, 64]),
    }
    state |= {f"a.{name}": value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


FOUR = settings("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16)
BAD = {
    "scales that fit no group": (packed(weight_scale=torch.ones(6, 3)), FOUR, "fits none"),
    "no scales": (packed(weight_scale=None), FOUR, "is missing"),
    "scales of integers": (packed(weight_scale=torch.ones(6, 4).int()), FOUR, "has type I32"),
    "a vector": (packed(weight_packed=torch.zeros(8, dtype=torch.int32)), FOUR, "must be a matrix"),
    "zero points that do not fit": (
        packed(weight_zero_point=torch.zeros(2, 4, dtype=torch.int32)),
        FOUR,
        "has shape",
    ),
    "an order that does not fit": (
        packed(weight_g_idx=torch.zeros(63, dtype=torch.int32)),
        FOUR,
        "has shape",
    ),
    "no groups": (packed(), {**FOUR, "config_groups": {}}, "fits none"),
    "groups that are no map": (packed(), {**FOUR, "config_groups": [1]}, "fits none"),
    "absurd bits": (packed(), settings("pack-quantized", num_bits=10**30), "fits none"),
    "packed and unpacked": (packed(weight=torch.ones(6, 64)), FOUR, "packed and unpacked"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(tmp_path, case):
    state, config, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        opened(write_packed(tmp_path / "m", state, config))


@pytest.mark.parametrize("form", ["sparse-24-bitmask", "marlin-24", "mxfp6-pack-quantized", 3])
def test_formats_that_are_not_read_are_refused_by_name(tmp_path, form):
    folder = write_packed(tmp_path / "m", packed(), settings(form, num_bits=4))
    with pytest.raises(NotBuiltYetError, match=f"format '?{form}'? cannot be read"):
        opened(folder)
    folder = write_packed(tmp_path / "s", packed(), {**FOUR, "sparsity_config": {"format": form}})
    with pytest.raises(NotBuiltYetError, match=f"format '?{form}'? cannot be read"):
        opened(folder)


def test_a_stated_shape_that_is_another_is_refused_before_the_first_block(tmp_path):
    folder = write_packed(tmp_path / "m", packed(weight_shape=torch.tensor([6, 63])), FOUR)
    with pytest.raises(NotBuiltYetError, match=r"\[6, 63\]"):
        read_all(folder)


def test_scales_of_activations_and_of_the_cache_are_left_out_and_told(tmp_path):
    more = {"k_proj.k_scale": torch.ones(1), "a.input_scale": torch.ones(1)}
    checkpoint = opened(write_packed(tmp_path / "m", packed() | more, FOUR))
    ref = checkpoint.tensors["a.weight"]
    assert list(checkpoint.tensors) == ["a.weight"] and isinstance(ref, PackedRef)
    assert ref.stored_as == "I4 by 1 x 16"
    assert any("2, such as 'a.input_scale'" in warning for warning in checkpoint.warnings)
