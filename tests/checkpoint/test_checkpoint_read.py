"""Range reads: exact, threaded, bounded, and suspicious of change."""

import os
import threading

import pytest

from mergewise.checkpoint import FileReader, open_checkpoint
from mergewise.errors import CheckpointError


def tensor_bytes(ref):
    return ref.file.read_bytes()[ref.start : ref.end]


def test_ranges(sharded):
    checkpoint = open_checkpoint(sharded)
    with FileReader(checkpoint.stamps, max_open=2) as reader:
        for ref in checkpoint.tensors.values():
            buffer = bytearray(ref.nbytes - 2)
            reader.read_into(ref, 2, memoryview(buffer))
            assert buffer == tensor_bytes(ref)[2:]


def test_many_threads_few_descriptors(sharded):
    checkpoint = open_checkpoint(sharded)
    refs = list(checkpoint.tensors.values())
    failures, most = [], []
    expected = {ref.name: tensor_bytes(ref) for ref in refs}

    def work(reader, shift):
        for ref in (refs[shift:] + refs[:shift]) * 5:
            buffer = bytearray(ref.nbytes)
            reader.read_into(ref, 0, memoryview(buffer))
            most.append(len(reader._open))
            if buffer != expected[ref.name]:
                failures.append(ref.name)

    with FileReader(checkpoint.files, max_open=2) as reader:
        threads = [threading.Thread(target=work, args=(reader, i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and max(most) <= 2 + len(threads)


def test_short_reads_are_continued(llama, monkeypatch):
    checkpoint = open_checkpoint(llama)
    ref = checkpoint.tensors["lm_head.weight"]
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    buffer = bytearray(ref.nbytes)
    with FileReader(checkpoint.files) as reader:
        reader.read_into(ref, 0, memoryview(buffer))
    assert buffer == tensor_bytes(ref)


@pytest.fixture
def copied(llama, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((llama / "model.safetensors").read_bytes())
    return path


def test_truncated_while_reading(copied):
    checkpoint = open_checkpoint(copied)
    last = max(checkpoint.tensors.values(), key=lambda t: t.end)
    with FileReader(checkpoint.stamps) as reader:
        reader.read_into(last, 0, memoryview(bytearray(2)))
        os.truncate(copied, last.end - 1)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated while reading"):
            reader.read_into(last, 0, memoryview(bytearray(last.nbytes)))


def test_a_change_is_noticed(copied):
    with FileReader([copied]) as reader:
        reader.verify_unchanged()
        os.utime(copied, ns=(1, 1))
        with pytest.raises(CheckpointError, match=r"model\.safetensors: the file changed"):
            reader.verify_unchanged()


def test_a_replacement_is_noticed_before_it_is_read(copied):
    checkpoint = open_checkpoint(copied)
    data = copied.read_bytes()
    copied.unlink()
    copied.write_bytes(data[:-1] + b"!")
    with pytest.raises(CheckpointError, match="changed"):
        FileReader(checkpoint.stamps)


def test_absent():
    from pathlib import Path

    with pytest.raises(CheckpointError, match="no such file"):
        FileReader([Path("absent.safetensors")])


def test_a_range_outside_the_tensor_is_a_programming_error(llama):
    checkpoint = open_checkpoint(llama)
    ref = checkpoint.tensors["model.norm.weight"]
    with FileReader(checkpoint.files) as reader, pytest.raises(ValueError, match="asked for"):
        reader.read_into(ref, 1, memoryview(bytearray(ref.nbytes)))
