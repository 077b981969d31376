"""GGUF files: names, rows, numbers and config, against gguf-py and transformers."""

import json

import numpy as np
import pytest
import torch
from small_gguf import info, llama_pairs, raw_file, write_model
from small_packed import opened, read_all

import mergewise
from mergewise.checkpoint import PackedRef, TensorRef, open_checkpoint
from mergewise.checkpoint._gguf._ggml import Ggml
from mergewise.checkpoint._gguf._types import TYPES
from mergewise.errors import CheckpointError, NotBuiltYetError

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}


def model_of(arch, seed=0, **more):
    name = "gemma3_text" if arch == "gemma3" else arch
    config = transformers.AutoConfig.for_model(name, **{**SIZES, **more})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def stored_arch(arch):
    return "llama" if arch == "mistral" else arch


@pytest.mark.parametrize(
    ("arch", "kind"), [*((a, "Q8_0") for a in ARCHITECTURES), ("llama", "F16"), ("gemma2", "BF16")]
)
def test_names_and_numbers_are_those_of_the_model(tmp_path, arch, kind):
    model = model_of(arch)
    true = write_model(tmp_path / "m.gguf", model, stored_arch(arch), kind)
    assert true.keys() <= model.state_dict().keys()
    for step in (333, 100_000):
        found = read_all(tmp_path / "m.gguf", step)
        assert found.keys() == true.keys()
        for name, value in true.items():
            assert torch.equal(found[name].float(), value), name


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if a != "gemma"])
def test_transformers_reads_the_same(tmp_path, arch):
    # of Qwen's heads transformers does not read the width, but takes the default
    width = 128 if arch == "qwen3" else 16 if arch == "qwen2" else 32
    write_model(tmp_path / "m.gguf", model_of(arch, head_dim=width), stored_arch(arch))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    state = theirs.state_dict()
    found = read_all(tmp_path)
    for name, value in found.items():
        assert torch.equal(value.float(), state[name]), name
    tied = {"lm_head.weight"} if theirs.config.tie_word_embeddings else set()
    assert state.keys() - found.keys() <= tied
    ours = opened(tmp_path).config
    assert ours is not None
    for key in [*SIZES, "rms_norm_eps", "tie_word_embeddings"]:
        if key in ours and key != "head_dim":
            assert ours[key] == pytest.approx(getattr(theirs.config, key)), key


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dequantised_once_it_loads_and_computes_the_same(tmp_path, arch):
    model = model_of(arch, max_position_embeddings=64)
    true = write_model(tmp_path / "m.gguf", model, stored_arch(arch))
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": str(tmp_path / "m.gguf")}],
        "dtype": "float32",
    }
    with mergewise.allow(dequantize=True):
        mergewise.merge(recipe, tmp_path / "out")
    merged, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    model.load_state_dict(true, strict=False)
    model.tie_weights()
    model.set_attn_implementation("eager")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        difference = (model.eval()(tokens).logits - merged.eval()(tokens).logits).abs().max()
    assert difference < 1e-5


QUANTISED = [t.name for t in TYPES.values() if t.read and not t.stored]


@pytest.mark.parametrize("kind", QUANTISED)
def test_random_bytes_are_what_gguf_says_they_are(tmp_path, kind):
    of = next(t for t in TYPES.values() if t.name == kind)
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (6, 2 * of.size), dtype=np.uint8)
    path = tmp_path / "raw"
    path.write_bytes(raw.tobytes())
    ref = TensorRef("w", "U8", (raw.size,), 0, raw.size, path)
    packing = Ggml(ref, of, 2 * of.block)
    wanted = gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, kind)).ravel()

    def fill(part, start, view):
        view[:] = raw.tobytes()[start : start + len(view)]

    for start in range(0, wanted.size, packing.granule):
        found = packing.values(start, packing.granule, fill).numpy()
        piece = wanted[start : start + packing.granule]
        assert np.array_equal(found, piece, equal_nan=True)


def test_types_are_as_gguf_has_them():
    sizes = {int(t): (t.name, *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    for number, known in TYPES.items():
        assert sizes[number] == (known.name, known.block, known.size)


def test_without_leave_the_error_says_how_to_ask(tmp_path):
    write_model(tmp_path / "m.gguf", model_of("llama"), "llama")
    with pytest.raises(CheckpointError, match=r"quantised weights \(Q8_0\).*--dequantize"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_file_that_is_not_quantised_needs_no_leave(tmp_path):
    write_model(tmp_path / "m.gguf", model_of("qwen2"), "qwen2", "F16")
    assert len(open_checkpoint(tmp_path).tensors) == 27


def test_a_config_beside_it_is_used(tmp_path):
    model = model_of("llama")
    write_model(tmp_path / "m.gguf", model, "llama")
    config = {**model.config.to_dict(), "dtype": "float16", "marked": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = opened(tmp_path)
    assert checkpoint.config is not None and checkpoint.config["marked"] == 1
    assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "F16"
    assert checkpoint.tensors["model.norm.weight"].dtype == "F32"


def test_packed_tensors_count_their_stored_bytes(tmp_path):
    write_model(tmp_path / "m.gguf", model_of("llama"), "llama")
    ref = opened(tmp_path).tensors["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(ref, PackedRef)
    assert (ref.stored_as, ref.dtype, ref.shape) == ("Q8_0", "BF16", (96, 64))
    assert ref.nbytes == 96 * 64 // 32 * 34


def test_an_expert_in_gguf_merges_with_a_base_of_transformers(tmp_path):
    base = model_of("llama", seed=1).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    true = write_model(tmp_path / "m.gguf", model_of("llama", seed=2), "llama")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "m.gguf"), "parameters": {"weight": 0.5}}],
    }
    with mergewise.allow(dequantize=True):
        mergewise.merge(recipe, tmp_path / "out")
    merged = read_all(tmp_path / "out")
    for name, value in base.state_dict().items():
        wanted = value.float() + 0.5 * (true[name] - value.float())
        assert torch.equal(merged[name], wanted.to(torch.bfloat16)), name


def test_a_split_model(tmp_path):
    pairs = llama_pairs(**{"split.count": 2})
    first = raw_file(pairs, [info("token_embd.weight", (4, 32), 0, 0)], bytes(512))
    second = raw_file([], [info("output_norm.weight", (32,), 0, 0)], bytes(128))
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(second)
    for path in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        checkpoint = open_checkpoint(path)
        assert list(checkpoint.tensors) == ["model.embed_tokens.weight", "model.norm.weight"]
        assert len(checkpoint.files) == 2
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("pairs", "tensor", "message"),
    [
        ({"general.architecture": "rwkv6"}, "token_embd.weight", "'rwkv6' cannot be read"),
        ({"llama.expert_count": 8}, "token_embd.weight", "mixture of experts"),
        ({}, "blk.0.ssm_in.weight", "none that this version knows"),
        ({}, "blk.0.attn_q.scale", "none that this version knows"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, pairs, tensor, message):
    data = raw_file(llama_pairs(**pairs), [info(tensor, (4, 32), 0, 0)], bytes(512))
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(NotBuiltYetError, match=message):
        opened(tmp_path / "m.gguf")


def test_two_models_in_a_folder(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="2 GGUF models"):
        open_checkpoint(tmp_path)
