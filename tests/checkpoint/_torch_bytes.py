"""Files of torch.save written by hand, so that they can lie."""

import io
import struct
import zipfile


def text(value):
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, qualified):
    return f"c{module}\n{qualified}\n".encode()


def call(module, qualified, *arguments):
    return name(module, qualified) + tuple_(*arguments) + b"R"


def counts(values):
    return tuple_(*(number(v) for v in values))


ORDERED = call("collections", "OrderedDict")


def storage(key="0", count=6, kind="FloatStorage", module="torch", more=b""):
    parts = (text("storage"), name(module, kind), text(key), text("cpu"), number(count))
    return tuple_(*parts, more) + b"Q" if more else tuple_(*parts) + b"Q"


def tensor(offset=0, shape=(2, 3), stride=(3, 1), function="_rebuild_tensor_v2", **of):
    parts = (storage(**of), number(offset), counts(shape), counts(stride), b"\x89", ORDERED)
    return call("torch._utils", function, *parts)


def mapping(items):
    inner = b"".join(key + value for key, value in items)
    return b"}(" + inner + b"u"


def pickled(*items):
    """A pickle of a dict: pairs of a key's and a value's instructions."""
    return b"\x80\x02" + mapping(items) + b"."


PLAIN = pickled((text("w"), tensor()))
DATA = {"0": struct.pack("<6f", *range(6))}


def torch_zip(data=PLAIN, storages=None, root="x/", byteorder=b"little", more=None, method=0):
    """A zip file as torch writes it, around any pickle."""
    members = {f"{root}data.pkl": data, f"{root}byteorder": byteorder}
    members |= {f"{root}data/{k}": v for k, v in (DATA if storages is None else storages).items()}
    members |= {f"{root}version": b"3\n", **(more or {})}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for path, content in members.items():
            archive.writestr(zipfile.ZipInfo(path), content, method)
    return file.getvalue()


MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."


def legacy(data=None, keys=("0",), body=None, little=b"\x88"):
    """A file of torch before 1.6, around any pickle."""
    system = b"\x80\x02" + mapping([(text("little_endian"), little)]) + b"."
    old = pickled((text("w"), tensor(more=b"N")))
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    raw = struct.pack("<Q", 6) + DATA["0"] if body is None else body
    return MAGIC + PROTOCOL + system + (old if data is None else data) + listed + raw
