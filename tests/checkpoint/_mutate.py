"""Seeded damage to a valid safetensors file and to JSON documents."""

import copy
import json
import random
import struct

VALUES = [
    *(None, True, False, -1, 0, 1, 2, 7, 1.5, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63)),
    *("", "x", "F32", "F64", "BOOL", "F4", "U8", "../x", "\ud800", "\x00", "é" * 300),
    *([], {}, [0], [0, 0], [0, 4], [4, 0], [0, 2**64], [1, 2, 3], [[]], {"a": 1}, ["F32"]),
    *([0, 2**62], [2**32, 2**32], [-1, 4], [1.0, 2.0], [True, True], [None]),
]


def valid_file() -> bytes:
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [32, 33]},
        "d": {"dtype": "I64", "shape": [0, 5], "data_offsets": [33, 33]},
        "e": {"dtype": "F4", "shape": [2], "data_offsets": [33, 34]},
    }
    return joined(json.dumps(entries).encode(), bytes(range(34)))


def split(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def joined(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_length(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(8)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 40))


def splice_header(rng: random.Random, data: bytes) -> bytes:
    """Insert, repeat or remove a piece of the header's text."""
    header, body = split(data)
    start, end = sorted(rng.randrange(len(header) + 1) for _ in range(2))
    piece = rng.choice([b"", header[start:end] * 2, rng.randbytes(3), b"[" * 50, b" ", b"\x00"])
    return joined(header[:start] + piece + header[end:], body)


def swap_digits(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    places = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
    damaged = bytearray(header)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.choice(places)] = ord(rng.choice("0123456789-.e"))
    return joined(bytes(damaged), body)


def edit_json(rng: random.Random, value: object) -> object:
    """A copy of a JSON value with one place replaced, removed, renamed or added to."""
    value = copy.deepcopy(value)
    parents = [value]
    for item in parents:
        children = item.values() if isinstance(item, dict) else item
        parents += [child for child in children if isinstance(child, dict | list) and child]
    place = rng.choice(parents)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, action = rng.choice(keys), rng.randrange(4)
    if action == 0:
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[rng.choice(["", "zz", "__metadata__", "a", "\ud800", "x" * 5000])] = place.pop(key)
    elif action == 2 and isinstance(place, list):
        place.append(rng.choice(VALUES))
    else:
        place[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def edit_header(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    entries = json.loads(header)
    for _ in range(rng.choice([1, 1, 2])):
        entries = edit_json(rng, entries) if entries else entries
    return joined(json.dumps(entries).encode(), body)


def repeat_entry(rng: random.Random, data: bytes) -> bytes:
    """Duplicate keys, which a dict cannot express."""
    header, body = split(data)
    entries = json.loads(header)
    items = [*entries.items(), rng.choice(list(entries.items()))]
    rng.shuffle(items)
    text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in items)
    return joined(f"{{{text}}}".encode(), body)


MUTATIONS = [
    *(flip_bits, flip_length, cut, extend, splice_header, swap_digits),
    *(edit_header, edit_header, edit_header, repeat_entry),
]


def mutated(seed: int) -> bytes:
    rng = random.Random(seed)
    return MUTATIONS[seed % len(MUTATIONS)](rng, valid_file())
