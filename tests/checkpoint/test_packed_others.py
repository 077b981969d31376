"""GPTQ, AWQ, gpt-oss's mxfp4 and bitsandbytes, against arithmetic by hand and transformers."""

import json

import pytest
import torch
from small_packed import opened, read_all, write_packed

from mergewise.errors import CheckpointError, NotBuiltYetError


def same(folder, wanted):
    for step in (1, 37, 1000):
        found = read_all(folder, step)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name].float(), value.float()), name


def packed_down(codes, bits):
    """Integers [n, m] in int32 words down the rows, the first in the lowest bits."""
    rows, columns = codes.shape
    words = torch.zeros(-(-rows * bits // 32), columns, dtype=torch.int64)
    for i in range(rows):
        word, shift = divmod(i * bits, 32)
        words[word] |= codes[i].long() << shift & 0xFFFFFFFF
        if shift + bits > 32:
            words[word + 1] |= codes[i].long() >> 32 - shift
    return torch.where(words > 2**31 - 1, words - 2**32, words).int()


def gptq(bits, less=1, order=None, seed=0):
    """Stored tensors of one layer [40, 64] in four groups, and its weight."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (64, 40), generator=draw)
    zeros = torch.randint(1, 2**bits, (4, 40), generator=draw)
    scales = torch.rand(4, 40, generator=draw).half()
    of = torch.arange(64) // 16 if order is None else order
    weight = (codes - zeros[of]).float() * scales[of].float()
    stored = {
        "a.qweight": packed_down(codes, bits),
        "a.qzeros": packed_down((zeros - less).T, bits).T.contiguous(),
        "a.scales": scales,
        "a.g_idx": of.int(),
        "a.bias": torch.ones(40).half(),
    }
    return stored, {"a.weight": weight.T, "a.bias": stored["a.bias"]}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path, bits):
    stored, wanted = gptq(bits)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False}
    same(write_packed(tmp_path / "m", stored, settings), wanted)


def test_gptq_in_the_order_of_activations_and_in_its_second_format(tmp_path):
    stored, wanted = gptq(4, less=0, order=torch.randperm(64) // 16)
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}
    same(write_packed(tmp_path / "m", stored, settings), wanted)
    del stored["a.g_idx"]
    stored, wanted = gptq(4)
    del stored["a.g_idx"]
    same(write_packed(tmp_path / "n", stored, {**settings, "checkpoint_format": "gptq"}), wanted)


def test_settings_in_a_file_of_their_own(tmp_path):
    stored, wanted = gptq(4)
    folder = write_packed(tmp_path / "m", stored, None)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16}))
    same(folder, wanted)
    (folder / "quantize_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        opened(folder)


def test_awq(tmp_path):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 40), generator=draw)
    zeros = torch.randint(0, 16, (4, 40), generator=draw)
    scales = torch.rand(4, 40, generator=draw).half()
    of = torch.arange(64) // 16

    def across(values):
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        mixed = values.view(len(values), -1, 8)[:, :, order].reshape(len(values), -1)
        return packed_down(mixed.T, 4).T.contiguous()

    stored = {"a.qweight": across(codes), "a.qzeros": across(zeros), "a.scales": scales}
    weight = (codes - zeros[of]).float() * scales[of].float()
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    same(write_packed(tmp_path / "m", stored, settings), {"a.weight": weight.T})
    with pytest.raises(NotBuiltYetError, match="'gemv'"):
        opened(write_packed(tmp_path / "n", stored, {**settings, "version": "GEMV"}))


def test_the_experts_of_gpt_oss(tmp_path):
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=draw, dtype=torch.uint8)
    scales = torch.randint(120, 131, (3, 10, 2), generator=draw, dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored = {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.ones(3, 10)}
    folder = write_packed(tmp_path / "m", stored, {"quant_method": "mxfp4"})
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    same(folder, {name: theirs, f"{name}_bias": torch.ones(3, 10)})


def test_bitsandbytes_of_eight_bits(tmp_path):
    codes = torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    scale = torch.rand(6)
    stored = {
        "a.weight": codes,
        "a.SCB": scale,
        "a.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    wanted = codes.float() * (scale / 127)[:, None]
    same(write_packed(tmp_path / "m", stored, settings), {"a.weight": wanted})


def nf4(nested, **changes):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (6 * 96,), generator=draw, dtype=torch.uint8)
    table, blocks = torch.randn(16, generator=draw), 6 * 96 // 64
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [6, 96], "dtype": "bfloat16"}
    stored = {
        "a.weight": (codes[0::2] << 4 | codes[1::2])[:, None],
        "a.weight.quant_map": table,
    }
    absmax = torch.rand(blocks, generator=draw)
    if nested:
        inner, outer = torch.rand(256, generator=draw), torch.rand(3, generator=draw)
        small = torch.randint(0, 256, (blocks,), generator=draw, dtype=torch.uint8)
        state |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
        stored |= {"a.weight.nested_quant_map": inner, "a.weight.nested_absmax": outer}
        stored["a.weight.absmax"] = small
        absmax = inner[small.int()] * outer.repeat_interleave(4)[:blocks] + 0.25
    else:
        stored["a.weight.absmax"] = absmax
    raw = json.dumps({**state, **changes}).encode()
    stored["a.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(raw), dtype=torch.uint8)
    return stored, (table[codes.int()] * absmax.repeat_interleave(64)).view(6, 96)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_of_four_bits(tmp_path, nested):
    stored, wanted = nf4(nested)
    same(write_packed(tmp_path / "m", stored, BNB), {"a.weight": wanted})


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [6, 97]},
        {"shape": [2**40, 2**40]},
        {"shape": [-6, 96]},
        {"shape": "6x96"},
        {"shape": []},
        {"blocksize": 0},
        {"blocksize": 2**40},
        {"blocksize": 63},
        {"nested_blocksize": None},
        {"nested_offset": "0"},
    ],
    ids=str,
)
def test_states_that_lie_are_refused(tmp_path, changes):
    stored, _ = nf4(True, **changes)
    with pytest.raises(CheckpointError, match="fetch it again"):
        opened(write_packed(tmp_path / "m", stored, BNB))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.qzeros", None),
        ("a.scales", None),
        ("a.scales", torch.ones(3, 40).half()),
        ("a.scales", torch.ones(4, 39).half()),
        ("a.qzeros", torch.zeros(4, 4, dtype=torch.int32)),
        ("a.g_idx", torch.zeros(63, dtype=torch.int32)),
        ("a.qweight", torch.zeros(8, dtype=torch.int32)),
        ("a.qweight", torch.zeros(8, 40)),
        ("b.qzeros", torch.zeros(4, 5, dtype=torch.int32)),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v is not None and list(v.shape)),
)
def test_what_does_not_fit_is_refused(tmp_path, name, value):
    stored, _ = gptq(4)
    stored[name] = value
    stored = {n: t for n, t in stored.items() if t is not None}
    folder = write_packed(tmp_path / "m", stored, {"quant_method": "gptq", "bits": 4})
    if name != "a.g_idx" and not (name == "a.scales" and value is not None and len(value) == 3):
        with pytest.raises(CheckpointError, match="fetch it again"):
            opened(folder)
        return
    with pytest.raises(CheckpointError):
        opened(folder)


def test_an_order_of_groups_that_are_not_there(tmp_path):
    stored, _ = gptq(4)
    stored["a.g_idx"] = torch.full((64,), 4, dtype=torch.int32)
    folder = write_packed(tmp_path / "m", stored, {"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="numbers from 0 to 3"):
        read_all(folder)


@pytest.mark.parametrize("method", ["hqq", "quanto", "torchao", "aqlm", "eetq"])
def test_methods_that_are_not_read_are_refused_by_name(tmp_path, method):
    folder = write_packed(tmp_path / "m", {"a": torch.zeros(2)}, {"quant_method": method})
    with pytest.raises(NotBuiltYetError, match=f"'{method}'.*cannot dequantise"):
        opened(folder)
