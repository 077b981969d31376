"""Data files: every kind is read, and broken, hostile or huge ones are refused with their place."""

import gzip
import io
import json
import os
import pickle
import zipfile

import numpy
import pytest

from mergewise.errors import DataError
from mergewise.evidence import _readers
from mergewise.evidence._data import Data

ROWS = [{"text": "eins", "label": 0}, {"text": "zwei", "label": 1}, {"text": "drei", "label": 0}]


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, content):
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def records(source, **options):
    return [dict(record) for record in Data(source, **options)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines()),
        ("a.jsonl.gz", lines()),
        ("a.JSONL.GZ", lines()),
        ("a.v2.jsonl", lines().replace("\n", "\n\n")),
        ("a.jsonl", "\ufeff" + lines()),
        ("a.jsonl", lines().rstrip("\n").replace("\n", "\r\n")),
        ("a.json", json.dumps(ROWS)),
        ("a.json.gz", json.dumps(ROWS)),
    ],
)
def test_json_kinds(tmp_path, name, content):
    path = tmp_path / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert records(path) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_with_a_header_line_quotes_and_line_breaks(tmp_path, name):
    path = write(tmp_path / name, 'text,label\r\n"a, ""b""\nc",1\r\n')
    assert records(path) == [{"text": 'a, "b"\nc', "label": "1"}]


def test_tsv_without_a_header_line_keeps_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'say "hi\t1,000\n')
    assert records(path, columns=("question", "answer")) == [
        {"question": 'say "hi', "answer": "1,000"}
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a.py"])
def test_text_is_one_record(tmp_path, name):
    assert records(write(tmp_path / name, "one\ntwö\n")) == [{"text": "one\ntwö\n"}]


def test_text_with_a_separator_is_several_records(tmp_path):
    path = write(tmp_path / "a.txt", "one\n%%\ntwo\n%%\n")
    assert records(path, separator="\n%%\n") == [{"text": "one"}, {"text": "two"}]
    assert Data(path).fingerprint() != Data(path, separator="%%").fingerprint()


def test_arrays_by_split(tmp_path):
    images = numpy.arange(24, dtype=numpy.uint8).reshape(3, 2, 4)
    numpy.savez(tmp_path / "a.npz", x_train=images, y_train=numpy.array([2, 0, 1]))
    found = records(tmp_path / "a.npz", split="train", rows=(1, None))
    assert [record["label"] for record in found] == [0, 1]
    assert (found[0]["image"] == images[1]).all()


def test_iterables_of_texts_and_mappings():
    assert records(["a", {"x": 1}]) == [{"text": "a"}, {"x": 1}]


def test_rows_shares_and_firsts(tmp_path):
    data = Data([str(i) for i in range(10)], rows=(2, 9))

    def texts(part):
        return [int(record["text"]) for record in part]

    assert texts(data) == [2, 3, 4, 5, 6, 7, 8]
    assert texts(data.only((0, 3))) == [2, 5, 8]
    assert sorted(n for k in range(3) for n in texts(data.only((k, 3)))) == texts(data)
    assert texts(data.first(3)) == [2, 3, 4]
    assert texts(data.first(50)) == texts(data)
    assert texts(Data(data.source, rows=(7, None)).first(2)) == [7, 8]


@pytest.mark.parametrize("rows", [(-1, None), (3, 3), (5, 2)])
def test_impossible_rows_are_refused(rows):
    with pytest.raises(DataError, match="0 <= from < to expected"):
        Data(["a"], rows=rows)


@pytest.mark.parametrize("share", [(-1, 2), (2, 2), (0, 0)])
def test_impossible_shares_are_refused(share):
    with pytest.raises(DataError, match="0 <= k < n expected"):
        Data(["a"], share=share)


def test_fingerprints_follow_content_and_choice_of_rows(tmp_path):
    one, same = write(tmp_path / "a.jsonl", lines()), write(tmp_path / "b.jsonl", lines())
    other = write(tmp_path / "c.jsonl", lines(ROWS[:2]))
    assert Data(one).fingerprint() == Data(same).fingerprint()
    marks = {Data(one, rows=(0, 2)).fingerprint(), Data(other).fingerprint()}
    assert len(marks | {Data(one).fingerprint()}) == 3
    assert Data(["a"]).fingerprint() is None
    assert Data("datasets:x").fingerprint() is None


def nested(depth):
    return "[" * depth + "]" * depth


def lying_npz():
    """A header that promises 2^61 elements."""
    out = io.BytesIO()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1152921504606846976, 2), }\n"
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("x_test.npy", head)
        file.writestr("y_test.npy", head)
    return out.getvalue()


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("was-executed",))


def pickled_npz():
    out = io.BytesIO()
    array = numpy.array([Evil()], dtype=object)
    numpy.savez(out, x_test=array, y_test=numpy.array([0]))
    return out.getvalue()


def arrays(**named):
    out = io.BytesIO()
    numpy.savez(out, **named)
    return out.getvalue()


GZ = gzip.compress(lines(ROWS * 50).encode())

BROKEN = {
    "no file": ("none.jsonl", None, "none.jsonl: cannot be opened: No such file"),
    "no kind": ("a.xyz", "x", "not a kind of data that is read; expected .jsonl"),
    "only gz": ("a.gz", "x", "not a kind of data"),
    "half a gz": ("a.jsonl.gz", GZ[:-20], "cannot be read: .*is it complete"),
    "no gz": ("a.txt.gz", b"plain", "cannot be read: .*is it complete"),
    "spoilt gz": ("a.txt.gz", GZ[:30] + b"\xff" * 20 + GZ[50:], "cannot be read"),
    "latin 1": ("a.txt", b"na\xefve", "byte 0xef is not UTF-8"),
    "binary": ("a.jsonl", b"\x00\x80\xff", "byte 0x80 is not UTF-8"),
    "not JSON": ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
    "deep JSON": ("a.jsonl", nested(100_000), r"a\.jsonl:1: not JSON"),
    "deep list": ("a.json", nested(100_000), r"a\.json: not JSON"),
    "digits": ("a.json", "9" * 10_000, r"a\.json: not JSON"),
    "a number": ("a.jsonl", "7\n", "a.jsonl:1: a record must be an object .* got int"),
    "an object": ("a.json", '{"a": 1}', "a list of objects expected, got dict"),
    "columns": ("a.csv", "a,b\n1,2,3\n", r"a\.csv:2: 3 fields, expected 2 \(a, b\)"),
    "huge field": ("a.csv", "a\n" + "x" * 200_000, "field larger than field limit"),
    "no zip": ("a.npz", b"PK\x03\x04garbage", "cannot be read as arrays"),
    "empty npz": ("a.npz", b"", "cannot be read as arrays"),
    "pickle": ("a.npz", pickle.dumps(Evil()), "cannot be read as arrays"),
    "pickle inside": ("a.npz", pickled_npz(), "cannot be read as arrays: Object arrays"),
    "lying npz": ("a.npz", lying_npz(), "cannot be read as arrays"),
    "an npy": ("a.npz", b"\x93NUMPY\x01\x00", "cannot be read as arrays"),
    "no split": ("a.npz", arrays(x_train=numpy.zeros((1, 2))), "no array 'x_test'; it has x_train"),
    "lengths": (
        "a.npz", arrays(x_test=numpy.zeros((2, 2)), y_test=numpy.zeros(3, int)),
        r"x_test of shape \[2, 2\] and y_test of shape \[3\] do not belong together",
    ),
    "scalars": ("a.npz", arrays(x_test=1, y_test=2), "do not belong together"),
    "soft labels": (
        "a.npz", arrays(x_test=numpy.zeros((2, 2)), y_test=numpy.zeros(2)), "whole numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_data_errors(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    name, content, message = BROKEN[case]
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        list(Data(tmp_path / name))
    assert not (tmp_path / "was-executed").exists()


def test_numpy_asks_no_pickle_for_a_plain_npy(tmp_path):
    numpy.save(tmp_path / "a.npy", numpy.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match="cannot be read as arrays"):
        list(Data(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.jsonl.gz"])
def test_empty_files_have_no_records(tmp_path, name):
    assert records(write(tmp_path / name, "")) == []


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_readers, "MAX_LINE", 1000)
    bomb = write(tmp_path / "a.jsonl.gz", '{"a": 1}\n' + '"' + "x" * 1_000_000)
    found = iter(Data(bomb))
    assert next(found) == {"a": 1}
    with pytest.raises(DataError, match=r":2: a line of more than 1,000 characters"):
        next(found)


def test_a_file_read_whole_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(_readers, "MAX_WHOLE", 1000)
    with pytest.raises(DataError, match="more than 1,000 characters; split the file"):
        records(write(tmp_path / "a.txt.gz", "x" * 1_000_000))


def test_folders_and_pipes_are_refused_at_once(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("folder.txt", "pipe.txt"):
        with pytest.raises(DataError, match="a regular file expected"):
            records(tmp_path / name)


def test_a_record_of_a_wrong_type_is_named():
    with pytest.raises(DataError, match="<list>, row 2: a record must be"):
        records([{"a": 1}, 5])


def test_the_same_bytes_read_as_another_kind_are_other_data(tmp_path):
    marks = {Data(write(tmp_path / f"a.{kind}", lines())).fingerprint()
             for kind in ("jsonl", "txt", "csv", "tsv", "JSONL")}  # fmt: skip
    assert len(marks) == 4


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="two columns are called 'text'"):
        records(write(tmp_path / "a.csv", "text,label,text\na,0,b\n"))
