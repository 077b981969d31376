"""Hostile GGUF files: an error each, soon, with little memory, and nothing outside touched."""

import os
import random
import struct

import pytest
import torch
from _bounds import bounded, refused
from small_gguf import info, llama_pairs, pair, raw_file, text
from small_packed import opened, read_all

from mergewise.errors import MergewiseError, NonFiniteError
from mergewise.plan import build_plan

BIG = 2**63
EMBED = ("token_embd.weight", (4, 32), 0, 0)
DATA = bytes(512)


def one(*infos, pairs=None, data=DATA, **lies):
    """A Llama's file with these entries."""
    return raw_file(llama_pairs() if pairs is None else pairs, list(infos), data, **lies)


def huge_text(length):
    return struct.pack("<Q", length) + b"x"


def array(kind, length, rest=b""):
    return struct.pack("<IQ", kind, length) + rest


def aligned(value, kind=4):
    raw = struct.pack("<I", value) if kind == 4 else value
    return [*llama_pairs(), pair("general.alignment", raw, kind)]


GOOD = one(info(*EMBED))
NORM = ("output_norm.weight", (32,), 0, 512)
QUANTISED = ("token_embd.weight", (4, 32), 8, 0)
CASES = {
    # the beginning
    "empty": (b"", "must begin with GGUF"),
    "short": (b"GGUF", "must begin with GGUF"),
    "23 bytes": (GOOD[:23], "must begin with GGUF"),
    "other magic": (one(info(*EMBED), magic=b"GGML"), "must begin with GGUF"),
    "safetensors inside": (struct.pack("<Q", 100) + b'{"a":' + bytes(95), "must begin"),
    "a pickle inside": (b"\x80\x02cos\nsystem\nq\x00." + bytes(40), "must begin"),
    "version 0": (one(info(*EMBED), version=0), "version"),
    "version 1": (one(info(*EMBED), version=1), "version 1"),
    "version 4": (one(info(*EMBED), version=4), "version 2 or 3"),
    "big-endian": (one(info(*EMBED), version=3 << 24), "big-endian"),
    # counts
    "2**64 - 1 tensors": (one(tensors=2**64 - 1), "it claims"),
    "more tensors than bytes": (one(tensors=100), "it claims"),
    "2**63 pairs": (one(count=BIG), "it claims"),
    "more pairs than bytes": (one(count=9_000), "it claims"),
    "more pairs than there are": (one(info(*EMBED), count=6), ""),
    "fewer pairs than there are": (one(info(*EMBED), count=4), ""),
    "more tensors than entries": (one(info(*EMBED), tensors=2), ""),
    "no tensors": (one(), "no tensors"),
    # metadata
    "a key of 2**64 - 1 bytes": (raw_file([huge_text(2**64 - 1)], count=1, data=DATA), "key"),
    "a key of a gigabyte": (raw_file([huge_text(2**30)], count=1, data=DATA), "key"),
    "an empty key": (one(info(*EMBED), pairs=[pair("", 1)]), "is empty"),
    "a key that is no text": (one(info(*EMBED), pairs=[pair(b"\xff\xfe", 1)]), "not UTF-8"),
    "a key twice": (one(info(*EMBED), pairs=[*llama_pairs(), pair("llama.block_count", 1)]),
                    "there twice"),
    "an unknown value type": (one(info(*EMBED), pairs=[pair("a", b"\0" * 8, 13)]), "type 13"),
    "a value type of 2**32 - 1": (one(info(*EMBED), pairs=[pair("a", b"", 2**32 - 1)]), "type"),
    "a string of 2**62 bytes": (one(info(*EMBED), pairs=[pair("a", huge_text(2**62), 8)]), "'a'"),
    "a string past the end": (one(info(*EMBED), pairs=[pair("a", huge_text(1_000_000), 8)]), "'a'"),
    "an array of 2**63 numbers": (one(info(*EMBED), pairs=[pair("a", array(4, BIG), 9)]), "'a'"),
    "an array past the end": (one(info(*EMBED), pairs=[pair("a", array(4, 10**6), 9)]), "'a'"),
    "an array of 2**63 strings": (one(info(*EMBED), pairs=[pair("a", array(8, BIG), 9)]), "claims"),
    "strings past the end": (one(info(*EMBED), pairs=[pair("a", array(8, 50), 9)]), "'a'"),
    "a long string in an array": (
        one(info(*EMBED), pairs=[pair("a", array(8, 2, huge_text(2**62)), 9)]), "'a'"),
    "an array of arrays": (one(info(*EMBED), pairs=[pair("a", array(9, 3), 9)]), "unknown type 9"),
    "an array of an unknown type": (one(info(*EMBED), pairs=[pair("a", array(77, 3), 9)]), "77"),
    "arrays in arrays without end": (
        one(info(*EMBED), pairs=[pair("a", array(9, 1) * 200, 9)]), "unknown type 9"),
    # the architecture
    "no architecture": (one(info(*EMBED), pairs=[]), "architecture None"),
    "an architecture of control characters": (
        one(info(*EMBED), pairs=[pair("general.architecture", "\x1b[2J")]), r"\x1b[2J"),
    "an architecture that is a number": (
        one(info(*EMBED), pairs=[pair("general.architecture", 7)]), "architecture 7"),
    "a very long architecture": (
        one(info(*EMBED), pairs=[pair("general.architecture", "x" * 100_000)]), "characters)"),
    "a path as an architecture": (
        one(info(*EMBED), pairs=[pair("general.architecture", "../../etc")]), "'../../etc'"),
    # alignment
    "alignment 0": (one(info(*EMBED), pairs=aligned(0)), "power of two"),
    "alignment 3": (one(info(*EMBED), pairs=aligned(3)), "power of two"),
    "alignment 24": (one(info(*EMBED), pairs=aligned(24)), "power of two"),
    "alignment 2**31": (one(info(*EMBED), pairs=aligned(2**31)), "power of two"),
    "alignment of text": (one(info(*EMBED), pairs=aligned(text("32"), 8)), "power of two"),
    "alignment of true": (one(info(*EMBED), pairs=aligned(b"\1", 7)), "power of two"),
    "alignment past the end": (one(info(*EMBED), pairs=aligned(2**20)), "truncated"),
    # names of tensors
    "a name of 2**64 - 1 bytes": (one(huge_text(2**64 - 1) + bytes(40)), "tensor's name"),
    "a name of a kilobyte": (one(info("x" * 1000, (4, 32), 0, 0)), "tensor's name"),
    "an empty name": (one(info("", (4, 32), 0, 0)), "is empty"),
    "a name that is no text": (one(info(b"\xff\xfe", (4, 32), 0, 0)), "not UTF-8"),
    "a name twice": (one(info(*EMBED), info("token_embd.weight", (4, 32), 0, 512), data=DATA * 2),
                     "twice"),
    "a name that leaves the folder": (one(info("../../x", (4, 32), 0, 0)), "'../../x'"),
    "an absolute name": (one(info("/etc/passwd", (4, 32), 0, 0)), "'/etc/passwd'"),
    "a name with a null": (one(info("token_embd.weight\0", (4, 32), 0, 0)), "none that"),
    "a name with an escape": (one(info("\x1b[31mred", (4, 32), 0, 0)), r"\x1b"),
    "a layer of ten digits": (one(info("blk.9999999999.attn_q.weight", (4, 32), 0, 0)), "none"),
    "a negative layer": (one(info("blk.-1.attn_q.weight", (4, 32), 0, 0)), "none"),
    "a layer of Arabic digits": (one(info("blk.٣.attn_v.weight", (4, 32), 0, 0)), "none"),
    "a layer with a zero before it": (
        one(info("blk.0.attn_v.weight", (4, 32), 0, 0), info("blk.00.attn_v.weight", (4, 32), 0,
            512), data=DATA * 2), "none that"),
    # shapes
    "no axes": (one(info("token_embd.weight", (), 0, 0)), "axes expected"),
    "five axes": (one(info("token_embd.weight", (1, 1, 1, 4, 32), 0, 0)), "axes expected"),
    "2**32 - 1 axes": (one(info(*EMBED, axes=2**32 - 1)), "axes expected"),
    "an axis of zero": (one(info("token_embd.weight", (0, 32), 0, 0)), "no sane shape"),
    "an axis of 2**64 - 1": (one(info("token_embd.weight", (1, 2**64 - 1), 0, 0)), "no sane"),
    "a product of 2**66": (one(info("token_embd.weight", (2**33, 2**33), 0, 0)), "no sane"),
    "a product that wraps to 0": (one(info("token_embd.weight", (2**32, 2**32), 0, 0)), "no sane"),
    "a petabyte": (one(info("token_embd.weight", (2**25, 2**25), 0, 0)), "truncated"),
    "one row too many": (one(info("token_embd.weight", (5, 32), 0, 0)), "truncated"),
    # types
    "type 4, withdrawn": (one(info("token_embd.weight", (4, 32), 4, 0)), "type 4"),
    "type 2**32 - 1": (one(info("token_embd.weight", (4, 32), 2**32 - 1, 0)), "type"),
    "half a block": (one(info("token_embd.weight", (8, 16), 8, 0)), "multiples of 32"),
    "less than a block of 256": (one(info("token_embd.weight", (4, 32), 12, 0)), "of 256"),
    "Q8_1": (one(info("token_embd.weight", (4, 32), 9, 0)), "Q8_1"),
    "Q8_K": (one(info("token_embd.weight", (1, 256), 15, 0)), "Q8_K"),
    # offsets
    "an offset of 2**64 - 32": (one(info("token_embd.weight", (4, 32), 0, 2**64 - 32)), "expected"),
    "an offset of 1": (one(info("token_embd.weight", (4, 32), 0, 1)), "expected 0"),
    "a hole": (one(info("token_embd.weight", (4, 32), 0, 64), data=DATA * 2), "expected 0"),
    "overlapping": (one(info(*EMBED), info("output_norm.weight", (32,), 0, 256)), "expected 512"),
    "the same place": (one(info(*EMBED), info("output_norm.weight", (32,), 0, 0)), "expected"),
    "past the end": (one(info(*EMBED), info(*NORM)), "truncated"),
    "no data": (one(info(*EMBED), data=b""), "truncated"),
    "a byte too few": (one(info(*EMBED), data=DATA[1:]), "truncated"),
    # heads
    "heads that do not divide": (
        one(info("blk.0.attn_q.weight", (6, 32), 0, 0), data=DATA * 2,
            pairs=llama_pairs(**{"llama.attention.head_count": 5})), "heads"),
    "no heads": (one(info("blk.0.attn_q.weight", (4, 32), 0, 0),
                     pairs=[pair("general.architecture", "llama")]), "heads"),
    "2**31 heads": (
        one(info("blk.0.attn_q.weight", (4, 32), 0, 0),
            pairs=llama_pairs(**{"llama.attention.head_count": 2**31})), "heads"),
    "heads of another width": (
        one(info("blk.0.attn_q.weight", (4, 32), 0, 0)), "heads"),
    # splits
    "one of 65535": (one(info(*EMBED), pairs=[*llama_pairs(), pair("split.count", 65_535)]),
                     "one of 65535"),
    "a split of text": (one(info(*EMBED), pairs=[*llama_pairs(), pair("split.count", "x")]),
                        "one of 'x'"),
}  # fmt: skip


def test_the_good_file_is_read(tmp_path):
    (tmp_path / "m.gguf").write_bytes(GOOD)
    assert list(opened(tmp_path / "m.gguf").tensors) == ["model.embed_tokens.weight"]


def test_there_are_enough_of_them():
    assert len(CASES) >= 70


@pytest.mark.parametrize("case", CASES)
def test_is_refused(tmp_path, case):
    data, message = CASES[case]
    (tmp_path / "m.gguf").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    refused(opened, tmp_path / "m.gguf", message, megabytes=2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("cut", [24, 30, 60, 100, 200, 250, 288, 300, 799])
def test_cut_anywhere(tmp_path, cut):
    (tmp_path / "m.gguf").write_bytes(GOOD[:cut])
    refused(opened, tmp_path / "m.gguf", megabytes=2)


def test_seeded_damage_gives_an_error_or_a_checkpoint(tmp_path):
    rng, path = random.Random(5), tmp_path / "m.gguf"
    good = one(info(*QUANTISED), info("blk.0.attn_q.weight", (32, 32), 2, 160), data=bytes(736))
    path.write_bytes(good)
    assert len(read_all(path)) == 2
    refusals = 0
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(320)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with bounded(3):
            try:
                opened(path)
            except MergewiseError as error:
                assert str(error).isprintable()
                refusals += 1
    assert refusals > 200


@pytest.mark.parametrize("kind", ["pipe", "folder", "absent"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "m.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    refused(opened, path)


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00001-of-99999.gguf"])
def test_absurd_splits(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD)
    refused(opened, tmp_path / name, "files expected")


def test_a_link_to_another_file_is_read_as_gguf_or_not_at_all(tmp_path):
    (tmp_path / "secret").write_bytes(b"a secret of more than twenty-four bytes")
    (tmp_path / "m.gguf").symlink_to(tmp_path / "secret")
    error = refused(opened, tmp_path / "m.gguf", "must begin with GGUF")
    assert "secret" not in str(error)


def test_scales_that_are_nan_are_told_by_the_tensors_name(tmp_path):
    import mergewise

    block = struct.pack("<e", float("nan")) + bytes(32)
    data = block * 4 + bytes(24)
    (tmp_path / "m.gguf").write_bytes(one(info(*QUANTISED), data=data))
    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "m.gguf")}]}
    with mergewise.allow(dequantize=True):
        with pytest.raises(NonFiniteError, match=r"model\.embed_tokens\.weight"):
            mergewise.merge(recipe, tmp_path / "out")
        assert build_plan(recipe).bytes_read == 4 * 34
        mergewise.merge(recipe, tmp_path / "out2", allow_nonfinite=True)
    assert torch.isnan(read_all(tmp_path / "out2")["model.embed_tokens.weight"]).all()


def test_a_long_vocabulary_is_walked_not_kept(tmp_path):
    words = array(8, 100_000, b"".join(text(f"word{i}") for i in range(100_000)))
    pairs = [*llama_pairs(), pair("tokenizer.ggml.tokens", words, 9)]
    (tmp_path / "m.gguf").write_bytes(one(info(*EMBED), pairs=pairs))
    with bounded(3):
        assert len(opened(tmp_path / "m.gguf").tensors) == 1
