"""No input is trusted: hundreds of broken and malicious files, each refused quickly and cheaply.

Whatever the bytes, opening ends in a checkpoint or in a MergewiseError, within a second of CPU
and, for small files, 20 MB; and nothing is accepted that safetensors itself refuses.
"""

import json
import os
import random
import signal
import struct
import time
import tracemalloc
from contextlib import contextmanager

import pytest
from _mutate import edit_json, mutated, split, valid_file
from safetensors import SafetensorError, safe_open

from mergewise.checkpoint import open_checkpoint, read_header
from mergewise.errors import CheckpointError, MergewiseError, NotBuiltYetError

SEEDS = range(400)
MB = 1_000_000


@contextmanager
def bounded(megabytes=20):
    """Fail on a hang, on more than a second of CPU, or on a large allocation."""

    def late(*args):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
    finally:
        spent = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert spent < 1
    assert peak < megabytes * MB


def refused(action, path, message="", megabytes=20):
    with bounded(megabytes), pytest.raises(MergewiseError) as caught:
        action(path)
    text = str(caught.value)
    assert message in text
    assert text.isprintable() and len(text) < 2000
    return caught.value


def entry(dtype="U8", shape=(1,), offsets=(0, 1), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
SHAPE = '{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}'

# name: (header, data, part of the message)
BAD_HEADERS = {
    # JSON
    "no-json": (b"hello", b"", "must begin with"),
    "list": (b"[]", b"", "must begin with"),
    "empty": (b"", b"", "must begin with"),
    "leading-space": (b' {"a":%s}' % ONE.encode(), b"x", "must begin with"),
    "byte-order-mark": (b"\xef\xbb\xbf{}", b"", "must begin with"),
    "unclosed": (b'{"a":', b"", "not valid JSON"),
    "trailing-garbage": (b"{} x", b"", "not valid JSON"),
    "trailing-nul": (b"{}\0", b"", "not valid JSON"),
    "trailing-form-feed": (b"{}\x0c", b"", "not valid JSON"),
    "trailing-nbsp": ("{}\u00a0".encode(), b"", "not valid JSON"),
    "two-documents": (b"{}{}", b"", "not valid JSON"),
    "single-quotes": (b"{'a':1}", b"", "not valid JSON"),
    "comment": (b"{/**/}", b"", "not valid JSON"),
    "trailing-comma": (b'{"a":%s,}' % ONE.encode(), b"x", "not valid JSON"),
    "invalid-utf-8": (b'{"\xff":%s}' % ONE.encode(), b"x", "not valid JSON"),
    "overlong-utf-8": (b'{"\xc0\x80":%s}' % ONE.encode(), b"x", "not valid JSON"),
    "utf-16": (f'{{"a":{ONE}}}'.encode("utf-16"), b"x", "must begin with"),
    "raw-surrogate": (b'{"\xed\xa0\x80":%s}' % ONE.encode(), b"x", "not valid JSON"),
    "raw-control-character": (b'{"a\x01":%s}' % ONE.encode(), b"x", "not valid JSON"),
    "bad-escape": (b'{"\\x":%s}' % ONE.encode(), b"x", "not valid JSON"),
    "lone-surrogate": (b'{"\\ud800":%s}' % ONE.encode(), b"x", "not valid Unicode"),
    "lone-low-surrogate": (b'{"a\\udfff":%s}' % ONE.encode(), b"x", "not valid Unicode"),
    "nan": (b'{"a":NaN}', b"", "whole number expected"),
    "infinity": (b'{"a":-Infinity}', b"", "whole number expected"),
    "nan-shape": ((SHAPE % "NaN").encode(), b"x", "whole number expected"),
    "deep-list": (b'{"a":' + b"[" * 100_000, b"", "nested too deeply"),
    "deep-object": (b'{"a":' * 50_000, b"", "nested too deeply"),
    "deep-but-closed": (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", b"", "nested more than"),
    "million-brackets": (b'{"a":' + b"[" * 1_000_000, b"", "nested too deeply"),
    "million-digits": ((SHAPE % ("9" * 1_000_000)).encode(), b"x", "cannot be"),
    "many-digits": ((SHAPE % ("9" * 5000)).encode(), b"x", "cannot be"),
    # names
    "duplicate-name": (f'{{"a":{ONE},"a":{ONE}}}'.encode(), b"x", "'a' occurs twice"),
    "duplicate-escaped": (b'{"a":%s,"\\u0061":%s}' % ((ONE.encode(),) * 2), b"x", "occurs twice"),
    "duplicate-metadata": (b'{"__metadata__":{},"__metadata__":{}}', b"", "occurs twice"),
    "duplicate-field": (
        *(b'{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', b"x"),
        "'shape' occurs twice",
    ),
    "empty-name": ({"": entry()}, b"x", "a name of 1 to"),
    "long-name": ({"n" * 5000: entry()}, b"x", "a name of 1 to"),
    "megabyte-name": ({"n" * MB: entry()}, b"x", "a name of 1 to"),
    # metadata
    "metadata-list": ({"__metadata__": []}, b"", "must map strings"),
    "metadata-string": ({"__metadata__": "pt"}, b"", "must map strings"),
    "metadata-number": ({"__metadata__": {"a": 1}}, b"", "must map strings"),
    "metadata-nested": ({"__metadata__": {"a": {"b": "c"}}}, b"", "must map strings"),
    "metadata-null-value": ({"__metadata__": {"a": None}}, b"", "must map strings"),
    "metadata-tensor": ({"__metadata__": entry()}, b"x", "must map strings"),
    "metadata-surrogate": ({"__metadata__": {"a": "\ud800"}}, b"", "must map strings"),
    "metadata-duplicate": (b'{"__metadata__":{"a":"b","a":"c"}}', b"", "occurs twice"),
    # entries
    "entry-null": ({"a": None}, b"", "dtype, shape and data_offsets expected"),
    "entry-string": ({"a": "F32"}, b"", "dtype, shape and data_offsets expected"),
    "entry-list": ({"a": ["U8", [1], [0, 1]]}, b"x", "dtype, shape and data_offsets expected"),
    "entry-empty": ({"a": {}}, b"", "dtype, shape and data_offsets expected"),
    "entry-extra-key": ({"a": entry(strides=[1])}, b"x", "dtype, shape and data_offsets expected"),
    "dtype-unknown": ({"a": entry("F128")}, b"x", "unknown dtype 'F128'"),
    "dtype-lower-case": ({"a": entry("u8")}, b"x", "unknown dtype"),
    "dtype-number": ({"a": entry(8)}, b"x", "unknown dtype"),
    "dtype-list": ({"a": entry(["U8"])}, b"x", "unknown dtype"),
    "dtype-control": ({"a": entry("\x1b[2J\n")}, b"x", r"\x1b[2J\n"),
    "shape-null": ({"a": {**entry(), "shape": None}}, b"x", "shape must be"),
    "shape-number": ({"a": {**entry(), "shape": 1}}, b"x", "shape must be"),
    "shape-string": ({"a": {**entry(), "shape": "1"}}, b"x", "shape must be"),
    "shape-object": ({"a": {**entry(), "shape": {"0": 1}}}, b"x", "shape must be"),
    "shape-bool": ({"a": entry(shape=[True])}, b"x", "shape must be"),
    "shape-strings": ({"a": entry(shape=["1"])}, b"x", "shape must be"),
    "shape-nested": ({"a": entry(shape=[[1]])}, b"x", "shape must be"),
    "shape-negative": ({"a": entry(shape=[-1])}, b"x", "cannot be '-1'"),
    "shape-two-negatives": ({"a": entry(shape=[-1, -1])}, b"x", "cannot be '-1'"),
    "shape-minus-zero": ((SHAPE % "-0").encode(), b"x", "cannot be '-0'"),
    "shape-float": ({"a": entry(shape=[1.0])}, b"x", "whole number expected"),
    "shape-exponent": ((SHAPE % "1e0").encode(), b"x", "whole number expected"),
    "shape-2**63": ({"a": entry(shape=[2**63])}, b"x", "shape must be"),
    "shape-2**64": ({"a": entry(shape=[2**64 - 1])}, b"x", "shape must be"),
    "shape-overflow": ({"a": entry(shape=[2**32, 2**32])}, b"x", "no whole or sane number"),
    "shape-overflow-to-1": ({"a": entry(shape=[2**62, 4, 1])}, b"x", "no whole or sane"),
    "shape-overflow-then-0": ({"a": entry("U8", [2**62, 8, 0], [0, 0])}, b"", "no whole or sane"),
    "shape-rank": ({"a": entry(shape=[1] * 65)}, b"x", "shape must be a list of at most 64"),
    "shape-huge-rank": ({"a": entry(shape=[1] * 100_000)}, b"x", "shape must be"),
    "shape-too-large": ({"a": entry(shape=[2])}, b"x", "takes 2 bytes, its range has 1"),
    "shape-too-small": ({"a": entry(shape=[0])}, b"x", "takes 0 bytes, its range has 1"),
    "half-a-byte": ({"a": entry("F4", [1])}, b"x", "no whole or sane number"),
    "six-bits": ({"a": entry("F6_E2M3", [1])}, b"x", "no whole or sane number"),
    "wrong-element-size": ({"a": entry("F32", [1])}, b"x", "takes 4 bytes, its range has 1"),
    # offsets
    "offsets-null": ({"a": {**entry(), "data_offsets": None}}, b"x", "data_offsets must be"),
    "offsets-one": ({"a": entry(offsets=[0])}, b"x", "data_offsets must be"),
    "offsets-three": ({"a": entry(offsets=[0, 1, 1])}, b"x", "data_offsets must be"),
    "offsets-reversed": ({"a": entry(offsets=[1, 0])}, b"x", "data_offsets must be"),
    "offsets-strings": ({"a": entry(offsets=["0", "1"])}, b"x", "data_offsets must be"),
    "offsets-bools": ({"a": entry(offsets=[False, True])}, b"x", "data_offsets must be"),
    "offsets-negative": ({"a": entry(offsets=[-1, 0])}, b"x", "cannot be '-1'"),
    "offsets-float": ({"a": entry(offsets=[0.0, 1.0])}, b"x", "whole number expected"),
    "offsets-2**64": ({"a": entry(offsets=[0, 2**64])}, b"x", "data_offsets must be"),
    "offsets-wrap": ({"a": entry(offsets=[2**64 - 1, 2**64])}, b"x", "data_offsets must be"),
    "offsets-beyond-end": ({"a": entry(shape=[9], offsets=[0, 9])}, b"x", "truncated"),
    "offsets-far-beyond-end": ({"a": entry(shape=[2**40], offsets=[0, 2**40])}, b"x", "truncated"),
    "hole-at-start": ({"a": entry(offsets=[1, 2])}, b"xx", "leaves a hole"),
    "hole-in-the-middle": ({"a": entry(), "b": entry(offsets=[2, 3])}, b"xxx", "leaves a hole"),
    "hole-at-end": ({"a": entry()}, b"xx", "longer than its header says"),
    "overlap-whole": ({"a": entry(), "b": entry()}, b"x", "overlaps"),
    "overlap-part": (
        {"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[2], offsets=[1, 3])},
        *(b"xxx", "overlaps"),
    ),
    "overlap-inside": (
        {"a": entry(shape=[9], offsets=[0, 9]), "b": entry(offsets=[4, 5])},
        *(b"x" * 9, "overlaps"),
    ),
    "empty-inside-another": (
        {"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[0], offsets=[1, 1])},
        *(b"xx", "overlaps"),
    ),
    "no-tensors-but-data": ({}, b"x", "longer than its header says"),
    # crowds
    "too-many-tensors": (b'{"a":{},' * 200_001, b"", "more than 200,000 tensors"),
    "too-many-commas": (b'{"a":[' + b"1," * 3_300_000, b"", "more than 200,000 tensors"),
}


def as_bytes(header):
    return header if isinstance(header, bytes) else json.dumps(header).encode()


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_header_is_refused(write_raw, case):
    header, data, message = BAD_HEADERS[case]
    path = write_raw(as_bytes(header), data)
    refused(read_header, path, message)
    refused(open_checkpoint, path.parent, "model.safetensors")


# accepted on purpose, as safetensors accepts them
GOOD_HEADERS = {
    "no-tensors": ({}, b""),
    "null-metadata": ({"__metadata__": None, "a": entry()}, b"x"),
    "metadata-last": ({"a": entry(), "__metadata__": {"a": "b"}}, b"x"),
    "not-padded": (b'{"a":%s}' % ONE.encode(), b"x"),
    "spaces-behind": (b'{"a":%s} \n\t ' % ONE.encode(), b"x"),
    "misaligned": ({"a": entry(), "b": entry("F32", [1], [1, 5])}, b"xxxxx"),
    "empties-anywhere": ({"b": entry("F32", [0], [1, 1]), "a": entry()}, b"x"),
    "empty-with-a-huge-axis": ({"a": entry("F32", [0, 2**62], [0, 0])}, b""),
    "control-characters-in-names": ({"a\x00\n\x7f": entry()}, b"x"),
    "slashes-in-names": ({"../../etc/passwd": entry()}, b"x"),
    "escaped-dtype": (b'{"a":{"dtype":"\\u00558","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "complex": ({"a": entry("C64", [1], [0, 8])}, b"x" * 8),
    "sub-byte": ({"a": entry("F6_E3M2", [4], [0, 3])}, b"xxx"),
}


@pytest.mark.parametrize("case", GOOD_HEADERS)
def test_header_is_accepted(write_raw, case):
    header, data = GOOD_HEADERS[case]
    path = write_raw(as_bytes(header), data)
    with bounded():
        ours = read_header(path)
    with safe_open(path, "pt") as theirs:
        assert set(ours.tensors) == set(theirs.keys())


@pytest.mark.parametrize("length", [1, 2**31, 2**63, 2**64 - 1, 100_000_001, 99_999_999, 50])
def test_announced_length(write_raw, length):
    path = write_raw(b'{"a":%s}' % ONE.encode(), b"x" if length > 1 else b"", length=length)
    refused(read_header, path)


@pytest.mark.parametrize("size", range(10))
def test_tiny_files(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * size)
    refused(read_header, path, "model.safetensors")


def test_sparse_file_of_a_terabyte(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40 - 8))
        file.truncate(2**40)
    refused(read_header, path, "at most 100,000,000")


def accepted_by_library(path):
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError:
        return None


STRICTER = ("occurs twice", "got ['", "a name of 1 to", "must begin with", "data_offsets expected")


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_file_agrees_with_safetensors(tmp_path, seed):
    path = tmp_path / "model.safetensors"
    path.write_bytes(mutated(seed))
    theirs = accepted_by_library(path)
    try:
        with bounded():
            header = read_header(path)
    except CheckpointError as error:
        assert theirs is None or any(reason in str(error) for reason in STRICTER)
        return
    assert theirs is not None, "accepted what safetensors refuses"
    assert {name: info.shape for name, info in header.tensors.items()} == theirs
    assert all(header.data_start <= t.start <= t.end for t in header.tensors.values())
    assert all(t.end <= header.file_size for t in header.tensors.values())


def test_the_damage_is_damage(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(valid_file())
    assert accepted_by_library(path) is not None and len(read_header(path).tensors) == 5
    outcomes = []
    for seed in SEEDS:
        path.write_bytes(mutated(seed))
        outcomes.append(accepted_by_library(path) is None)
    assert 0.5 < sum(outcomes) / len(outcomes) < 0.99


# index files

S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
GOOD_MAP = {"a": S1, "b": S2}

# name: (index document or text, part of the message)
BAD_INDEXES = {
    "empty-file": (b"", "not valid JSON"),
    "not-json": (b"{", "not valid JSON"),
    "list": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "string": (b'"x"', "must be a JSON object"),
    "number": (b"1e400", "must be a JSON object"),
    "empty-object": ({}, "weight_map must map"),
    "map-null": ({"weight_map": None}, "weight_map must map"),
    "map-list": ({"weight_map": [S1]}, "weight_map must map"),
    "map-string": ({"weight_map": S1}, "weight_map must map"),
    "map-empty": ({"weight_map": {}}, "weight_map must map"),
    "shard-null": ({"weight_map": {"a": None}}, "a file name expected"),
    "shard-number": ({"weight_map": {"a": 1}}, "a file name expected"),
    "shard-list": ({"weight_map": {"a": [S1]}}, "a file name expected"),
    "shard-object": ({"weight_map": {"a": {S1: 1}}}, "a file name expected"),
    "shard-bool": ({"weight_map": {"a": True}}, "a file name expected"),
    "metadata-list": ({"metadata": [1], "weight_map": GOOD_MAP}, "metadata must be"),
    "metadata-string": ({"metadata": "x", "weight_map": GOOD_MAP}, "metadata must be"),
    "missing-shard": ({"weight_map": {**GOOD_MAP, "c": "model-00003.safetensors"}}, "missing"),
    "ghost-tensor": ({"weight_map": {**GOOD_MAP, "c": S1}}, "'c' should be in"),
    "swapped-shards": ({"weight_map": {"a": S2, "b": S1}}, "should be in"),
    "half-an-index": ({"weight_map": {"a": S1}}, "is not listed in"),
    "unlisted-tensor": ({"weight_map": {"a": S1, "x": S2}}, "'x' should be in"),
    "control-in-name": ({"weight_map": {"\x1b[2J": S1, **GOOD_MAP}}, r"\x1b[2J"),
    "duplicate-tensor": (f'{{"weight_map":{{"a":"{S1}","a":"{S2}"}}}}'.encode(), "twice"),
    "duplicate-map": (b'{"weight_map":{},"weight_map":{}}', "occurs twice"),
    "deep": (b'{"weight_map":' + b"[" * 90_000, "nested too deeply"),
    "deep-objects": (b'{"a":' * 90_000, "nested too deeply"),
    "deep-but-closed": (b'{"weight_map":' + b"[" * 300 + b"]" * 300 + b"}", "nested more than"),
    "crowd-of-lists": (b'{"a":[' + b"[]," * 200_000, "lists and objects"),
    "crowd-of-values": (b'{"a":[' + b"1," * 1_100_000, "values"),
    "huge-number": (b'{"a":' + b"9" * 1_000_000 + b"}", "digits"),
    "invalid-utf-8": (b'{"weight_map":{"\xff":"x"}}', "not valid JSON"),
    "utf-16": ('{"weight_map":{}}'.encode("utf-16"), "not valid JSON"),
    "many-shards": (
        {"weight_map": {str(i): f"{i}.safetensors" for i in range(10_001)}},
        "at most 10,000",
    ),
}
LEAVING = [
    *("../model.safetensors", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a/../../x"),
    *("sub/model.safetensors", "./model.safetensors", "..\\model.safetensors", "\\\\host\\share"),
    *("C:\\model.safetensors", "C:model.safetensors", "file:///etc/passwd", "//host/x", "~/x"),
    *("https://example.org/model.safetensors", "a\0.safetensors", "a\n.safetensors"),
    *("", ".", "..", "...", "~", "model.bin", "passwd", "x.safetensors/", ".safetensors.json"),
    *("\u202ex.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"),
    *("é" * 150 + ".safetensors", "x" * MB + ".safetensors", "nul\u0000.safetensors"),
]


@pytest.fixture
def pair(tmp_path):
    """A folder with two shards holding `a` and `b`, and a function to write its index."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, shard in GOOD_MAP.items():
        header = json.dumps({name: entry()}).encode()
        (folder / shard).write_bytes(struct.pack("<Q", len(header)) + header + b"x")

    def write(document):
        (folder / "model.safetensors.index.json").write_bytes(as_bytes(document))
        return folder

    return write


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_index_is_refused(pair, case):
    document, message = BAD_INDEXES[case]
    refused(open_checkpoint, pair(document), message)


@pytest.mark.parametrize("shard", LEAVING, ids=lambda name: ascii(name[:40]))
def test_names_that_are_no_plain_shards(pair, shard):
    folder = pair({"weight_map": {**GOOD_MAP, "c": shard}})
    (folder.parent / "model.safetensors").write_bytes(valid_file())
    assert "plain file name" in str(refused(open_checkpoint, folder))


@pytest.mark.parametrize("total", [None, 0, 3, -1, 10**30, 2.0, "2", [2], True])
def test_total_size_is_only_compared(pair, total):
    """Valid by design: the total is not needed, a wrong one is a warning."""
    folder = pair({"metadata": {"total_size": total}, "weight_map": GOOD_MAP})
    with bounded():
        warnings = open_checkpoint(folder).warnings
    assert len(warnings) == (total not in (None, 2))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "loop"])
@pytest.mark.parametrize("name", [S1, "model.safetensors.index.json", "config.json"])
def test_not_a_regular_file(pair, kind, name):
    folder = pair({"weight_map": GOOD_MAP})
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        target = {"device": "/dev/zero", "dangling": "nowhere", "loop": name}[kind]
        (folder / name).symlink_to(target)
    assert name in str(refused(open_checkpoint, folder))


@pytest.mark.parametrize("seed", range(100))
def test_damaged_index(pair, seed):
    rng = random.Random(seed)
    good = {"metadata": {"total_size": 2}, "weight_map": GOOD_MAP}
    folder = pair(edit_json(rng, good))
    try:
        with bounded():
            checkpoint = open_checkpoint(folder)
    except MergewiseError:
        return
    assert set(checkpoint.tensors) == {"a", "b"}
    assert {file.parent for file in checkpoint.files} == {folder}


# configs

# name: (config document or text, part of the message)
BAD_CONFIGS = {
    "empty-file": (b"", "not valid JSON"),
    "not-json": (b"model_type: llama", "not valid JSON"),
    "list": (b"[]", "must be a JSON object"),
    "string": (b'"x"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "duplicate-key": (b'{"a":1,"a":2}', "'a' occurs twice"),
    "nested-duplicate-key": (b'{"a":{"b":1,"b":2}}', "'b' occurs twice"),
    "deep": (b'{"a":' + b"[" * 90_000, "nested too deeply"),
    "deep-but-closed": (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "nested more than"),
    "huge-number": (b'{"a":' + b"9" * 1_000_000 + b"}", "digits"),
    "huge-negative": (b'{"a":-' + b"9" * 5000 + b"}", "digits"),
    "huge-file": (b"{" + b" " * 8_000_001, "at most 8,000,000 are plausible"),
    "crowd": (b'{"a":[' + b"{}," * 200_000, "lists and objects"),
    "invalid-utf-8": (b'{"a":"\xff"}', "not valid JSON"),
    "architectures-string": ({"architectures": "LlamaForCausalLM"}, "architectures must be list"),
    "architectures-numbers": ({"architectures": [1]}, "architectures must be list"),
    "model-type": ({"model_type": ["llama"]}, "model_type must be str"),
    "tie-string": ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be bool"),
    "tie-number": ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool"),
    "layers-string": ({"num_hidden_layers": "2"}, "num_hidden_layers must be int"),
    "layers-bool": ({"num_hidden_layers": True}, "num_hidden_layers must be int"),
    "layers-infinite": (b'{"num_hidden_layers": Infinity}', "num_hidden_layers must be int"),
    "vocab-list": ({"vocab_size": [1]}, "vocab_size must be int"),
    "dtype-number": ({"dtype": 16}, "dtype must be"),
    "torch-dtype-list": ({"torch_dtype": ["float16"]}, "torch_dtype must be"),
    "text-config-list": ({"text_config": []}, "text_config must be dict"),
    "nested-wrong-type": ({"text_config": {"vocab_size": "1"}}, "vocab_size must be int"),
    "quantised-wrong-type": ({"quantization_config": "fp8"}, "quantization_config must be"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'"),
    "quantised-unnamed": ({"quantization_config": {"bits": 4}}, "quantised"),
    "quantised-control": ({"quantization_config": {"quant_method": "\x1b[2J"}}, r"\x1b[2J"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_config_is_refused(pair, case):
    document, message = BAD_CONFIGS[case]
    folder = pair({"weight_map": GOOD_MAP})
    (folder / "config.json").write_bytes(as_bytes(document))
    error = refused(open_checkpoint, folder, message)
    not_built = case.startswith("quantised") and case != "quantised-wrong-type"
    assert isinstance(error, NotBuiltYetError) == not_built


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"time_step_limit": [0.0, Infinity]}',
        '{"auto_map": {"AutoModel": "evil.py--__import__"}}',
        '{"architectures": []}',
        '{"architectures": null, "dtype": null}',
        '{"num_hidden_layers": 1000000000000000019884624838656}',
        '{"unknown": "\\ud800"}',
    ],
)
def test_config_is_accepted(pair, text):
    """Valid by design: models in the wild say such things, and none of it is executed."""
    folder = pair({"weight_map": GOOD_MAP})
    (folder / "config.json").write_text(text)
    with bounded():
        assert open_checkpoint(folder).architecture is None


@pytest.mark.parametrize("seed", range(100))
def test_damaged_config(llama, tmp_path, seed):
    from mergewise.checkpoint import edited_config, inspect_checkpoint, with_layers

    rng = random.Random(seed)
    config = json.loads((llama / "config.json").read_text())
    for _ in range(3):
        config = edit_json(rng, config)
    (tmp_path / "model.safetensors").symlink_to(llama / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        with bounded():
            checkpoint = open_checkpoint(tmp_path)
            inspect_checkpoint(checkpoint).to_dict()
            edited_config(checkpoint.config, dtype="float16", tie_word_embeddings=False)
            with_layers(checkpoint.config, [0, 0])
    except MergewiseError as error:
        assert str(error).isprintable()


def test_there_are_enough_cases():
    explicit = len(BAD_HEADERS) + len(BAD_INDEXES) + len(LEAVING) + len(BAD_CONFIGS)
    assert explicit + len(SEEDS) > 500 and split(valid_file())[1]
