"""Headers of real files, and the refusals a user is likely to meet."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergewise.checkpoint import read_header
from mergewise.errors import CheckpointError


def test_agrees_with_the_library(llama):
    path = llama / "model.safetensors"
    header = read_header(path)
    with safe_open(path, "pt") as file:
        assert set(header.tensors) == set(file.keys())
        assert header.metadata == file.metadata()
        data = path.read_bytes()
        for name, info in header.tensors.items():
            tensor = file.get_tensor(name)
            assert info.shape == tuple(tensor.shape) and info.dtype == "BF16"
            raw = torch.frombuffer(bytearray(data[info.start : info.end]), dtype=torch.bfloat16)
            assert torch.equal(raw.view(info.shape), tensor)
    assert header.file_size == len(data)


def test_order_is_that_of_the_data(tmp_path):
    save_file({"b": torch.zeros(1), "a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "x")
    infos = list(read_header(tmp_path / "x").tensors.values())
    assert [i.name for i in infos] == ["b", "a"]
    assert infos[0].end == infos[1].start


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 20])
def test_unusual_shapes(tmp_path, shape):
    save_file({"x": torch.zeros(shape)}, tmp_path / "x")
    info = read_header(tmp_path / "x").tensors["x"]
    assert info.shape == shape and info.nbytes == 4 * info.numel


def test_absent(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such file"):
        read_header(tmp_path / "nothing.safetensors")


def test_folder_and_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(CheckpointError, match="regular file expected"):
            read_header(path)


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(path)


def test_truncated(llama, tmp_path):
    path = tmp_path / "x"
    path.write_bytes((llama / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"x: truncated: [\d,]+ bytes expected"):
        read_header(path)


def test_control_characters_are_escaped_in_messages(write_raw):
    path = write_raw(b'{"a\\u001b[31m":{"dtype":"F32","shape":[1],"data_offsets":[0,1]}}', b"x")
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert "\x1b" not in str(error.value) and r"'a\x1b[31m'" in str(error.value)
