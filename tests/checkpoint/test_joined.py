"""Tensors put together from parts of others, read by range."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergewise.checkpoint import FileReader, JoinedRef, Piece, open_checkpoint
from mergewise.checkpoint._joined import joined
from mergewise.errors import CheckpointError


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    state = {"a": torch.arange(12.0), "b": torch.arange(100.0, 106.0), "c": torch.ones(3).half()}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def test_every_range_of_a_joined_tensor(parts: Path) -> None:
    tensors = open_checkpoint(parts).tensors
    pieces = [Piece(tensors["a"], 4, 3), Piece(tensors["b"], 0, 6), Piece(tensors["a"], 0, 3)]
    ref = joined("whole", (4, 3), pieces)
    assert isinstance(ref, JoinedRef) and ref.nbytes == 48 and ref.numel == 12
    wanted = torch.tensor([4.0, 5, 6, 100, 101, 102, 103, 104, 105, 0, 1, 2])
    with FileReader([ref.file]) as reader:
        for start in range(12):
            for end in range(start + 1, 13):
                buffer = bytearray(4 * (end - start))
                reader.read_into(ref, 4 * start, memoryview(buffer))
                found = torch.frombuffer(buffer, dtype=torch.float32)
                assert torch.equal(found, wanted[start:end]), (start, end)
        for start, size in ((-4, 4), (44, 8), (48, 4)):
            with pytest.raises(ValueError, match="asked for"):
                reader.read_into(ref, start, memoryview(bytearray(size)))


def test_a_range_of_one_tensor_is_a_place_in_its_file(parts: Path) -> None:
    tensors = open_checkpoint(parts).tensors
    ref = joined("part", (2, 2), [Piece(tensors["b"], 1, 4)])
    assert not isinstance(ref, JoinedRef) and ref.shape == (2, 2)
    assert (ref.start, ref.end) == (tensors["b"].start + 4, tensors["b"].start + 20)


def test_types_do_not_mix(parts: Path) -> None:
    tensors = open_checkpoint(parts).tensors
    with pytest.raises(CheckpointError, match="different types, F16 and F32"):
        joined("whole", (5,), [Piece(tensors["c"], 0, 3), Piece(tensors["b"], 0, 2)])
