"""PyTorch files that are broken or malicious: each is refused, and none runs anything."""

import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from _bounds import bounded, refused
from _mutate import cut, extend, flip_bits
from _torch_bytes import (
    DATA,
    MAGIC,
    PLAIN,
    PROTOCOL,
    call,
    counts,
    legacy,
    mapping,
    name,
    number,
    pickled,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_,
)

import mergewise
from mergewise.checkpoint import open_checkpoint
from mergewise.errors import MergewiseError

W = text("w")


def one(value):
    return pickled((W, value))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark, how):
        self.mark, self.how = str(mark), how

    def __reduce__(self):
        calls = {
            "system": (os.system, (f"touch {self.mark}",)),
            "open": (open, (self.mark, "w")),
            "eval": (eval, (f"open({self.mark!r}, 'w')",)),
            "exec": (exec, (f"open({self.mark!r}, 'w')",)),
            "getattr": (getattr, (os, "system")),
            "mkdir": (os.mkdir, (self.mark,)),
        }
        return calls[self.how]


@pytest.mark.parametrize("how", ["system", "open", "eval", "exec", "getattr", "mkdir"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "beside", "state"])
def test_a_pickle_that_runs_code(tmp_path, how, kind):
    mark = tmp_path / "ran"
    evil = pickle.dumps(Evil(mark, how), protocol=2) if how != "getattr" else b""
    if not evil:
        evil = b"\x80\x02" + call("builtins", "getattr", name("os", "path"), text("join")) + b"."
    inner = evil[2:-1]
    data = {
        "zip": torch_zip(evil),
        "legacy": legacy(evil),
        "bare": evil,
        "beside": torch_zip(
            pickled((text("state_dict"), b"}" + W + tensor() + b"s"), (text("x"), inner))
        ),
        "state": torch_zip(one(tensor() + inner + b"b")),
    }[kind]
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with mergewise.allow(pickle=True):
        error = refused(open_checkpoint, path)
    assert not mark.exists()
    assert "may run code" in str(error) or "not one of torch.save" in str(error)


TORCH_CLASS = call("torch.nn.modules.linear", "Linear", number(1))

# name: (data, part of the message)
HOSTILE = {
    # what is no weights
    "module": (torch_zip(one(TORCH_CLASS)), "a whole model was pickled"),
    "script": (torch_zip(more={"x/constants.pkl": b""}), "TorchScript"),
    "script code": (torch_zip(more={"x/code/a.py": b""}), "TorchScript"),
    "modelling": (
        torch_zip(one(name("transformers.models.bert.modeling_bert", "B"))),
        "a whole model",
    ),
    "list": (torch_zip(b"\x80\x02]" + tensor() + b"a."), "got a list"),
    "tensor": (torch_zip(b"\x80\x02" + tensor() + b"."), "got one tensor"),
    "number": (torch_zip(b"\x80\x02K\x01."), "something else"),
    "empty dict": (torch_zip(b"\x80\x02}."), "holds no tensors"),
    "no tensors": (torch_zip(pickled((text("a"), number(1)))), "holds no tensors"),
    "two dicts": (
        torch_zip(pickled(*((text(k), b"}" + W + tensor() + b"s") for k in "ab"))),
        "several",
    ),
    "dict beside": (
        torch_zip(pickled((W, tensor()), (text("o"), b"}" + W + tensor() + b"s"))),
        "which are",
    ),
    "key": (torch_zip(pickled((number(3), tensor()))), "a name was expected"),
    "tuple key": (torch_zip(pickled((tuple_(W), tensor()))), "a name was expected"),
    "empty name": (torch_zip(pickled((text(""), tensor()))), "no name"),
    "long name": (torch_zip(pickled((text("n" * 5000), tensor()))), "no name"),
    "surrogate": (torch_zip(pickled((text("\ud800"), tensor()))), "no name"),
    # tensors that are no range
    "transposed": (torch_zip(one(tensor(shape=(3, 2), stride=(1, 3)))), "not contiguous"),
    "expanded": (torch_zip(one(tensor(shape=(9, 6), stride=(0, 1)))), "not contiguous"),
    "stride 2": (torch_zip(one(tensor(shape=(3,), stride=(2,)))), "not contiguous"),
    "quantised": (torch_zip(one(call("torch._utils", "_rebuild_qtensor", storage()))), "quantised"),
    "sparse": (torch_zip(one(call("torch._utils", "_rebuild_sparse_tensor", number(1)))), "sparse"),
    "subclass": (torch_zip(one(call("torch._utils", "_rebuild_wrapper_subclass"))), "subclass"),
    "meta": (
        torch_zip(one(call("torch._utils", "_rebuild_meta_tensor_no_storage"))),
        "meta device",
    ),
    "big endian": (torch_zip(byteorder=b"big"), "little-endian is read"),
    "legacy big": (legacy(little=b"\x89"), "little-endian is read"),
    "legacy view": (
        legacy(one(tensor(more=tuple_(text("1"), number(0), number(6))))),
        "a view of another",
    ),
    # ranges that lie
    "behind": (torch_zip(one(tensor(shape=(7,), stride=(1,)))), "reaches behind"),
    "offset": (torch_zip(one(tensor(offset=1))), "reaches behind"),
    "huge offset": (torch_zip(one(tensor(offset=2**62))), "reaches behind"),
    "huge shape": (torch_zip(one(tensor(shape=(2**40, 2**40), stride=(2**40, 1)))), "cannot be"),
    "terabyte": (torch_zip(one(tensor(shape=(2**40,), stride=(1,)))), "reaches behind"),
    "negative": (torch_zip(one(tensor(shape=(-1,)))), "unfit arguments"),
    "text shape": (
        torch_zip(one(call("torch._utils", "_rebuild_tensor_v2", storage(), W, W, W))),
        "unfit",
    ),
    "many dimensions": (torch_zip(one(tensor(shape=[1] * 65, stride=[1] * 65))), "unfit"),
    "two ranks": (torch_zip(one(tensor(shape=(6,), stride=(1, 1)))), "unfit"),
    "count": (torch_zip(one(tensor(count=7))), "do not fill"),
    "huge count": (torch_zip(one(tensor(count=2**62))), "do not fill"),
    "wider": (torch_zip(one(tensor(kind="DoubleStorage"))), "do not fill"),
    "absent": (torch_zip(one(tensor(key="1"))), "not in the file"),
    "path key": (torch_zip(one(tensor(key="../data.pkl"))), "not in the file"),
    "no class": (torch_zip(one(tensor(kind="strided"))), "not in the file"),
    "id": (
        torch_zip(
            one(
                call(
                    "torch._utils",
                    "_rebuild_tensor_v2",
                    W + b"Q",
                    number(0),
                    counts([1]),
                    counts([1]),
                )
            )
        ),
        "not in the file",
    ),
    # pickles that are damaged
    "empty": (torch_zip(b""), "breaks off"),
    "no end": (torch_zip(PLAIN[:-1]), "breaks off"),
    "underflow": (torch_zip(b"\x80\x020."), "stack is empty"),
    "no mark": (torch_zip(b"\x80\x02t."), "stack is empty"),
    "mark": (torch_zip(b"\x80\x02(."), "stack is empty"),
    "memo": (torch_zip(b"\x80\x02h\x05."), "nothing was stored"),
    "protocol": (torch_zip(b"\x80\x09."), "protocol 9"),
    "instruction": (torch_zip(b"\x80\x02i."), "instruction"),
    "extension": (torch_zip(b"\x80\x02\x82\x01."), "instruction"),
    "text length": (torch_zip(b"\x80\x02X\xff\xff\xff\xff."), "breaks off"),
    "long text": (torch_zip(b"\x80\x02\x8d" + b"\xff" * 8 + b"."), "breaks off"),
    "bytes length": (torch_zip(b"\x80\x02\x8e" + b"\xff" * 8 + b"."), "breaks off"),
    "negative length": (torch_zip(b"\x80\x02T\xff\xff\xff\xff."), "negative length"),
    "utf-8": (torch_zip(b"\x80\x02X\x01\x00\x00\x00\xff."), "not UTF-8"),
    "items": (torch_zip(b"\x80\x02K\x01K\x01K\x01s."), "no dict"),
    "odd items": (torch_zip(b"\x80\x02}(K\x01u."), "no dict"),
    "append": (torch_zip(b"\x80\x02K\x01K\x01a."), "no list"),
    "call of a dict": (torch_zip(b"\x80\x02})R."), "no name"),
    "state of a number": (torch_zip(b"\x80\x02K\x01}b."), "a state of int"),
    "stack global": (
        torch_zip(b"\x80\x04" + text("os") + text("system") + b"\x93."),
        "may run code",
    ),
    "stack number": (torch_zip(b"\x80\x04K\x01K\x01\x93."), "a name expected"),
    "endless name": (torch_zip(b"\x80\x02c" + b"a" * 1000 + b"\nb\n."), "too many characters"),
    "control name": (torch_zip(b"\x80\x02ca\x1b[31m\nb\n."), "may run code"),
    "arguments": (torch_zip(one(call("collections", "OrderedDict", b"]"))), "unfit"),
    "wrappers": (
        torch_zip(
            one(
                call(
                    "torch._tensor",
                    "_rebuild_from_type_v2",
                    name("torch._tensor", "_rebuild_from_type_v2"),
                    name("torch", "Tensor"),
                    tuple_(),
                    b"N",
                )
            )
        ),
        "unfit",
    ),
    # zip files that are damaged
    "compressed": (torch_zip(method=zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (torch_zip(b"\0" * 10**7, method=zipfile.ZIP_DEFLATED), "compressed"),
    "no data.pkl": (torch_zip().replace(b"data.pkl", b"data.pkx"), "no data.pkl"),
    "nested root": (torch_zip(root="x/y/"), "no data.pkl"),
    "no root": (torch_zip(root=""), "no data.pkl"),
    "no directory": (torch_zip()[:-60], "list of members is missing"),
    "prepended": (b"PK\x03\x04junk" + torch_zip(), "damaged zip file"),
    "appended": (torch_zip() + b"x", "last record does not fit"),
    "plain zip": (b"PK\x03\x04", "list of members is missing"),
    "tar": (b"ustar" * 200, "no file of torch.save"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "no file of torch.save"),
    "nothing": (b"", "no file of torch.save"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    # old files
    "legacy magic": (b"\x80\x02K\x01.", "not one of torch.save"),
    "legacy short": (MAGIC, "truncated"),
    "legacy protocol": (MAGIC + b"\x80\x02K\x01." * 2, "unknown version"),
    "legacy system": (MAGIC + PROTOCOL + b"\x80\x02K\x01.", "unknown version"),
    "legacy keys": (
        legacy(keys=("0", "0"), body=(struct.pack("<Q", 6) + DATA["0"]) * 2),
        "damaged",
    ),
    "legacy unknown": (legacy(keys=("1",)), "damaged"),
    "legacy count": (legacy(body=struct.pack("<Q", 2**63) + DATA["0"]), "damaged"),
    "legacy cut": (legacy()[:-1], "truncated"),
    "legacy tail": (legacy() + b"x", "follow its last storage"),
}


def swapped(data, at, value, kind="<I"):
    size = struct.calcsize(kind)
    return data[:at] + struct.pack(kind, value) + data[at + size :]


def directory(data):
    return data.index(b"PK\x01\x02")


LYING = {
    "encrypted": (lambda d: swapped(d, directory(d) + 8, 1, "<H"), "compressed or encrypted"),
    "size": (lambda d: swapped(d, directory(d) + 24, 2**31), "compressed or encrypted"),
    "both sizes": (
        lambda d: swapped(swapped(d, directory(d) + 24, 2**31), directory(d) + 20, 2**31),
        "no end",
    ),
    "start": (lambda d: swapped(d, directory(d) + 42, 7), "not where it is said"),
    "start behind": (lambda d: swapped(d, directory(d) + 42, 2**31), "not where it is said"),
    "large start": (lambda d: swapped(d, directory(d) + 42, 2**32 - 1), "without its size"),
    "name length": (lambda d: swapped(d, directory(d) + 28, 60000, "<H"), "breaks off"),
    "local name": (lambda d: d.replace(b"x/data.pkl", b"y/data.pkl", 1), "two names"),
    "local method": (lambda d: swapped(d, 8, 8, "<H"), "two names or kinds"),
    "members": (
        lambda d: swapped(swapped(d, len(d) - 12, 9, "<H"), len(d) - 14, 9, "<H"),
        "breaks off",
    ),
    "few members": (
        lambda d: swapped(swapped(d, len(d) - 12, 1, "<H"), len(d) - 14, 1, "<H"),
        "another length",
    ),
    "disks": (lambda d: swapped(d, len(d) - 18, 1, "<H"), "does not fit"),
    "list length": (lambda d: swapped(d, len(d) - 10, 2**30), "listed in"),
    "list start": (lambda d: swapped(d, len(d) - 6, 2**31), "behind its end"),
    "large record": (lambda d: swapped(d, len(d) - 6, 2**32 - 1), "record of a large file"),
}


@pytest.mark.parametrize("data, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, data, message):
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with mergewise.allow(pickle=True):
        refused(open_checkpoint, path, message, 40)


@pytest.mark.parametrize("damage, message", LYING.values(), ids=LYING)
def test_lying_zip_records(tmp_path, damage, message):
    path = tmp_path / "a.pt"
    path.write_bytes(damage(torch_zip()))
    with mergewise.allow(pickle=True):
        refused(open_checkpoint, path, message)


def test_a_pickle_that_does_not_come_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("mergewise.checkpoint._torch_files._machine.MAX_STEPS", 1000)
    (tmp_path / "a.pt").write_bytes(torch_zip(b"\x80\x02" + b"N0" * 600 + b"."))
    with mergewise.allow(pickle=True):
        refused(open_checkpoint, tmp_path / "a.pt", "more than 1,000 steps")


def test_overlapping_members(tmp_path):
    data = torch_zip(storages={"0": DATA["0"], "1": DATA["0"]})
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    first = data.index(b"PK\x01\x02")
    inside = struct.unpack_from("<I", data, first + 42)[0]
    (tmp_path / "a.pt").write_bytes(swapped(data, second + 42, inside))
    with mergewise.allow(pickle=True):
        refused(open_checkpoint, tmp_path / "a.pt", "damaged zip file")


def test_shared_and_recursive_values_cost_nothing(tmp_path):
    """Sixty doublings of a tuple as a value, a list in itself, dicts of one large dict."""
    nested = b"N\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 60
    own = b"]q\x01h\x01a"
    large = mapping([(text(f"k{i}"), number(1)) for i in range(300)]) + b"q\x02"
    many = b"}(" + b"".join(text(f"d{i}") + b"h\x02" for i in range(300)) + b"u"
    values = [nested, own, large, many]
    data = pickled(*((text(str(i)), v) for i, v in enumerate(values)), (W, tensor()))
    (tmp_path / "a.pt").write_bytes(torch_zip(data))
    with mergewise.allow(pickle=True), bounded():
        assert list(open_checkpoint(tmp_path / "a.pt").tensors) == ["w"]
    key = b"N\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 60
    data = pickled((key, number(1)), (W, tensor()))
    (tmp_path / "a.pt").write_bytes(torch_zip(data))
    with mergewise.allow(pickle=True), bounded():
        assert list(open_checkpoint(tmp_path / "a.pt").tensors) == ["w"]


@pytest.mark.parametrize("seed", range(150))
def test_random_damage(tmp_path, seed):
    """Whatever is opened lies within the file; nothing else than a MergewiseError is raised."""
    rng = random.Random(seed)
    data = rng.choice([torch_zip(), legacy()])
    for _ in range(rng.randint(1, 3)):
        data = rng.choice([flip_bits, cut, extend, flip_bits])(rng, data)
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with mergewise.allow(pickle=True), bounded():
        try:
            found = open_checkpoint(path).tensors
        except MergewiseError as error:
            assert str(error).isprintable()
            return
    assert all(0 <= ref.start <= ref.end <= len(data) for ref in found.values())


def test_what_torch_refuses_is_refused(tmp_path):
    """Nothing is read that ``weights_only`` would not read, but for harmless things beside it."""
    accepted = []
    for kind, (data, _) in HOSTILE.items():
        if kind in ("script", "script code"):
            continue
        (tmp_path / "a.pt").write_bytes(data)
        try:
            torch.load(tmp_path / "a.pt", weights_only=True)
        except Exception:
            continue
        accepted.append(kind)
    # read by torch, refused here: these are no lists of weights that lie in the file as they are
    assert set(accepted) <= {
        "list", "tensor", "number", "empty dict", "no tensors", "two dicts", "dict beside", "key",
        "tuple key", "empty name", "long name", "surrogate", "transposed", "expanded", "stride 2",
        "big endian", "legacy view", "protocol", "compressed", "appended", "legacy tail",
        "meta", "many dimensions", "legacy big", "legacy keys", "legacy unknown", "arguments",
        "nested root", "bomb",
    }  # fmt: skip
