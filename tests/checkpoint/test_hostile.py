"""No input is trusted: hundreds of broken and malicious files, each refused quickly and cheaply.

Whatever the bytes, opening ends in a checkpoint or in a MergewiseError, within a second of CPU
and, for small files, 20 MB; and nothing is accepted that safetensors itself refuses.
"""

import struct

import pytest
from _bounds import MB, as_bytes, bounded, entry, refused
from _mutate import mutated, valid_file
from safetensors import SafetensorError, safe_open

from mergewise.checkpoint import open_checkpoint, read_header
from mergewise.errors import CheckpointError

SEEDS = range(400)
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


STRICTER = (
    "occurs twice",
    "got ['",
    "a name of 1 to",
    "must begin with",
    "data_offsets expected",
    "at most 64",
)


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
