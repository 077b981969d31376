"""PyTorch files are read as byte ranges, and only where the caller allows it."""

import io
import json
import struct

import pytest
import torch
from _torch_bytes import DATA, legacy, pickled, tensor, text, torch_zip

import mergewise
from mergewise.checkpoint import FileReader, inspect_checkpoint, open_adapter, open_checkpoint
from mergewise.errors import CheckpointError

STATE = {
    "plain": torch.randn(2, 3),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "float8": torch.randn(2).to(torch.float8_e4m3fn),
    "uint16": torch.arange(5).to(torch.uint16),
    "bfloat16": torch.randn(4).bfloat16(),
    "complex": torch.randn(2, dtype=torch.complex64),
    "bool": torch.tensor([True, False]),
    "part": torch.randn(6)[2:5],
    "one wide": torch.randn(4, 1, 3).transpose(0, 1).contiguous(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}


def read(checkpoint):
    found = {}
    with FileReader(checkpoint.stamps) as reader:
        for name, ref in checkpoint.tensors.items():
            data = bytearray(ref.nbytes)
            reader.read_into(ref, 0, memoryview(data))
            found[name] = (ref.shape, bytes(data))
    return found


def raw(state):
    flat = {name: value.detach().contiguous().reshape(-1) for name, value in state.items()}
    return {
        name: (tuple(state[name].shape), bytes(value.view(torch.uint8).numpy()))
        for name, value in flat.items()
    }


@pytest.fixture
def allowed():
    with mergewise.allow(pickle=True):
        yield


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt"])
def test_a_state_dict(tmp_path, allowed, ending, new):
    path = tmp_path / f"weights.{ending}"
    torch.save(STATE, path, _use_new_zipfile_serialization=new)
    assert read(open_checkpoint(path)) == raw(STATE)
    assert read(open_checkpoint(tmp_path)) == raw(STATE)
    if new:  # torch cannot read back an old file with float8 or uint16
        assert read(open_checkpoint(path)) == raw(torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, allowed, protocol):
    state = {"w": torch.randn(2, 2), "é" * 200: torch.randn(3)}
    torch.save(state, tmp_path / "a.pt", pickle_protocol=protocol)
    assert read(open_checkpoint(tmp_path / "a.pt")) == raw(state)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_tied_weights_are_the_same_bytes(tmp_path, allowed, new):
    table = torch.randn(4, 2)
    state = {"embed": table, "head": table, "row": table[1]}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    found = open_checkpoint(tmp_path / "a.pt").tensors
    assert found["embed"].start == found["head"].start == found["row"].start - 8
    assert read(open_checkpoint(tmp_path / "a.pt")) == raw(state)


@pytest.mark.parametrize(
    ("saved", "ignored"),
    [
        ({"state_dict": STATE, "epoch": 3, "callbacks": {"x": {1, 2}}}, "epoch, callbacks"),
        ({"model": STATE, "optimizer": {"state": STATE}}, r"optimizer \(11 tensors\)"),
        ({"anything": STATE, "lr": 0.1}, "lr"),
        ({"params": STATE, "params_ema": STATE}, r"params_ema \(11 tensors\)"),
        ({"model": {"state_dict": STATE, "step": 1}}, r"model\.step"),
        ({**STATE, "_extra_state": None}, "_extra_state"),
    ],
)
def test_weights_in_a_training_checkpoint(tmp_path, allowed, saved, ignored):
    torch.save(saved, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    assert read(checkpoint) == raw(STATE)
    (warning,) = checkpoint.warnings
    with pytest.raises(AssertionError, match=f"beside the weights, ignored: {ignored}$"):
        raise AssertionError(warning)


def test_a_module_of_torch(tmp_path, allowed):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert read(open_checkpoint(tmp_path / "a.pt")) == raw(model.state_dict())


def test_what_training_scripts_add_is_never_looked_up(tmp_path, allowed):
    from _torch_bytes import call, name

    extra = call("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    kind = name("numpy", "dtype") + b"(" + text("f8") + b"tR"
    data = pickled(
        (text("callbacks"), b"}" + text("a") + extra + b"s"),
        (text("score"), kind),
        (text("state_dict"), b"}" + text("w") + tensor() + b"s"),
    )
    (tmp_path / "a.ckpt").write_bytes(torch_zip(data))
    assert read(open_checkpoint(tmp_path / "a.ckpt")) == {"w": ((2, 3), DATA["0"])}


@pytest.fixture
def bins(tmp_path):
    """A model as transformers saved it before safetensors: two shards and an index."""
    parts = [{"a.weight": torch.randn(2, 2)}, {"b.weight": torch.randn(3)}]
    shards = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)]
    for part, shard in zip(parts, shards, strict=True):
        torch.save(part, tmp_path / shard)
    index = {
        "metadata": {"total_size": 28},
        "weight_map": dict(zip(["a.weight", "b.weight"], shards, strict=True)),
    }
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    return tmp_path, parts[0] | parts[1]


def test_shards(bins, allowed):
    folder, state = bins
    checkpoint = open_checkpoint(folder)
    assert read(checkpoint) == raw(state)
    assert inspect_checkpoint(folder).parameters == 7


def test_a_shard_that_leads_out_of_the_folder(bins, allowed):
    folder, _ = bins
    index = {"weight_map": {"a.weight": "../x.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="would leave the folder"):
        open_checkpoint(folder)


def test_a_shard_that_is_absent(bins, allowed):
    folder, _ = bins
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"named in .* but missing"):
        open_checkpoint(folder)


def test_safetensors_come_first(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for pickle in (True, False):
        with mergewise.allow(pickle=pickle):
            assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_several_files_without_an_index(tmp_path, allowed):
    for name in "ab":
        torch.save({"w": torch.zeros(1)}, tmp_path / f"{name}.pt")
    with pytest.raises(CheckpointError, match=r"2 PyTorch files .*name one of the files"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("data", [torch_zip(), legacy()], ids=["zip", "legacy"])
def test_unasked_for_files_are_not_opened(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(tmp_path)
    with mergewise.allow(pickle=True):
        assert read(open_checkpoint(tmp_path)) == {"w": ((2, 3), DATA["0"])}


def test_large_files_have_64_bit_records(tmp_path, allowed):
    """As torch writes them beyond 65,535 members."""
    plain = torch_zip()
    at = plain.rindex(b"PK\x05\x06")
    count, length, start = struct.unpack_from("<H2I", plain, at + 10)
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a.pt").write_bytes(plain[:at] + record + locator + end)
    assert read(open_checkpoint(tmp_path / "a.pt")) == {"w": ((2, 3), DATA["0"])}


def test_torch_reads_the_same(tmp_path):
    """The files that these tests write by hand are what torch itself accepts."""
    for data in (torch_zip(), legacy()):
        found = torch.load(io.BytesIO(data), weights_only=True)
        assert torch.equal(found["w"], torch.arange(6.0).reshape(2, 3))


def test_an_adapter(tmp_path, allowed):
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    start = "base_model.model.q.lora_"
    state = {f"{start}A.weight": torch.randn(1, 3), f"{start}B.weight": torch.randn(2, 1)}
    torch.save(state, tmp_path / "adapter_model.bin")
    adapter = open_adapter(tmp_path)
    assert {part: ref.shape for part, ref in adapter.modules["q"].items()} == {
        "lora_A": (1, 3), "lora_B": (2, 1)
    }  # fmt: skip


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128", "1.13", ""])
def test_models_are_run_from_them_on_a_safe_torch_only(tmp_path, version):
    from mergewise.checkpoint import refuse_old_torch

    files = [tmp_path / "pytorch_model.bin"]
    with pytest.raises(CheckpointError, match=r"torch 2\.10 or later"):
        refuse_old_torch(files, version)
    refuse_old_torch([tmp_path / "model.safetensors"], version)
    for good in ("2.10.0", "2.13.0+cpu", "3.0"):
        refuse_old_torch(files, good)
