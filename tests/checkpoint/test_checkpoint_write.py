"""Our layout is the library's, byte for byte."""

import json
import os

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from mergewise.checkpoint import (
    CODES,
    create_shard,
    index_json,
    open_checkpoint,
    plan_shards,
    write_at,
    write_file,
)
from mergewise.errors import OutputError

DTYPES = [
    *("bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "uint32"),
    *("float32", "float64", "int64", "uint64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
]


def specs(state):
    return [
        (name, CODES[str(t.dtype).removeprefix("torch.")], tuple(t.shape))
        for name, t in state.items()
    ]


def raw(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def written(folder, layout, state):
    path = folder / layout.filename
    descriptor = create_shard(path, layout)
    for name, start in reversed(layout.offsets.items()):
        write_at(descriptor, raw(state[name]), start)
    os.close(descriptor)
    return path.read_bytes()


def random_tensor(shape, dtype):
    kind = getattr(torch, dtype)
    size = int(torch.tensor(shape).prod()) * kind.itemsize
    if kind is torch.bool:
        return torch.rand(shape) > 0.5
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(kind).reshape(shape)


def identical(tmp_path, state):
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    (layout,) = plan_shards(specs(state), 10**9)
    assert layout.filename == "model.safetensors"
    return written(tmp_path, layout, state) == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_each_dtype(tmp_path, dtype):
    assert identical(tmp_path, {n: random_tensor((3, 5), dtype) for n in ("b", "a.1", "a.10")})


def test_bytes_of_all_dtypes_together(tmp_path):
    assert identical(tmp_path, {f"{len(d)}.{d}": random_tensor((2, 3), d) for d in DTYPES})


def test_bytes_of_scalars_empties_and_odd_names(tmp_path):
    names = [
        "é",
        "日本",
        "😀",
        'quote"back\\slash',
        "tab\tnew\nline\x01\x7f\u2028",
        "a/b",
        "Z",
        "z",
    ]
    state = {n: torch.full((), float(i)) for i, n in enumerate(names)}
    state["empty"] = torch.zeros(0, 3)
    state["empty too"] = torch.zeros(2, 0, dtype=torch.float16)
    assert identical(tmp_path, state)


@pytest.mark.parametrize("length", range(8))
def test_padding(tmp_path, length):
    assert identical(tmp_path, {"x" * (length + 1): torch.ones(1)})


def test_sharding_as_the_hub_does(llama_model):
    state = llama_model.state_dict()
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=4000)
    layouts = plan_shards(specs(state), 4000)
    assert {x.filename: set(x.offsets) for x in layouts} == {
        name: set(tensors) for name, tensors in theirs.filename_to_tensors.items()
    }


def test_index_as_transformers_writes_it(llama_model, tmp_path):
    llama_model.save_pretrained(tmp_path, max_shard_size="4KB")
    layouts = plan_shards(specs(llama_model.state_dict()), 4000)
    assert index_json(layouts) == (tmp_path / "model.safetensors.index.json").read_bytes()


def test_shards_can_be_opened(tmp_path, llama_model):
    state = llama_model.state_dict()
    layouts = plan_shards(specs(state), 3000)
    for layout in layouts:
        written(tmp_path, layout, state)
    (tmp_path / "model.safetensors.index.json").write_bytes(index_json(layouts))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.warnings == () and set(checkpoint.tensors) == set(state)


def test_order_and_size_cap():
    tensors = [(str(i), "F32", (n,)) for i, n in enumerate([1, 1, 9, 1, 2, 1])]
    shards = [list(x.offsets) for x in plan_shards(tensors, 12)]
    assert shards == [["0", "1"], ["2"], ["3", "4"], ["5"]]


def test_metadata_is_sorted():
    (layout,) = plan_shards([("x", "F32", (1,))], 10, {"z": "1", "format": "pt"})
    header = json.loads(layout.header[8:])
    assert list(header["__metadata__"].items()) == [("format", "pt"), ("z", "1")]


def test_no_tensors_is_a_valid_file(tmp_path):
    assert identical(tmp_path, {})


def test_wrong_use():
    with pytest.raises(OutputError, match="must be positive"):
        plan_shards([("x", "F32", (1,))], 0)
    with pytest.raises(ValueError, match="twice"):
        plan_shards([("x", "F32", (1,))] * 2, 10)
    with pytest.raises(ValueError, match="cannot be stored"):
        plan_shards([("x", "F99", (1,))], 10)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_modes_follow_the_umask(tmp_path, mask, mode):
    (layout,) = plan_shards([("x", "F32", (1,))], 10)
    before = os.umask(mask)
    try:
        os.close(create_shard(tmp_path / "a", layout))
        write_file(tmp_path / "b", b"text")
    finally:
        os.umask(before)
    assert {(tmp_path / n).stat().st_mode & 0o777 for n in "ab"} == {mode}


def test_create_does_not_overwrite(tmp_path):
    (layout,) = plan_shards([("x", "F32", (1,))], 10)
    (tmp_path / "a").write_text("keep")
    with pytest.raises(OutputError, match="exists already"):
        create_shard(tmp_path / "a", layout)
    assert (tmp_path / "a").read_text() == "keep"


def test_no_room(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    (layout,) = plan_shards([("x", "F32", (1,))], 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="no space left"):
        create_shard(tmp_path / "a", layout)
    assert not (tmp_path / "a").exists()


def test_write_file_replaces_a_link_without_following(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "config.json").symlink_to("precious")
    write_file(tmp_path / "config.json", b"new")
    assert (tmp_path / "precious").read_text() == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "precious"]
