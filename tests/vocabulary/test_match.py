"""Which tokens of two tokenizers are the same, though they are written in different ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import tokenizer_json, write_tokenizer

from mergewise.vocabulary import Cutter, Lexicon, match, read_lexicon, read_tokenizer
from mergewise.vocabulary._spelling import Spelling, byte_letters, spelling_of

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SPECIALS = ["<s>", "</s>", "<unk>"]


def byte_level(pieces: list[str], **parts: Any) -> dict[str, Any]:
    """A byte-level BPE; pieces of several letters are merged from the left."""
    known = dict.fromkeys([*SPECIALS, *byte_letters(), *pieces])
    merges = [[piece[:end], piece[end]] for piece in pieces for end in range(1, len(piece))]
    more = [left + right for left, right in merges]
    return tokenizer_json(
        [*known, *(m for m in dict.fromkeys(more) if m not in known)], merges=merges,
        pre_tokenizer=LEVEL, decoder=LEVEL, **parts,
    )  # fmt: skip


def spaced(pieces: list[str], **parts: Any) -> dict[str, Any]:
    """A sentencepiece-like BPE with bytes to fall back on."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [[piece[:end], piece[end]] for piece in pieces for end in range(1, len(piece))]
    letters = {letter for piece in pieces for letter in piece}
    more = [left + right for left, right in merges]
    known = dict.fromkeys([*SPECIALS, *fallback, *sorted(letters), *pieces, *more])
    return tokenizer_json(list(known), merges=merges, pre_tokenizer=SPACES, decoder=SPACES, **parts)


def word_pieces(pieces: list[str]) -> dict[str, Any]:
    data = tokenizer_json([*SPECIALS, *pieces])
    data["model"] = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                     "max_input_chars_per_word": 100, "vocab": data["model"]["vocab"]}  # fmt: skip
    return data


def lexicon(folder: Path, data: dict[str, Any], **config: Any) -> Lexicon:
    folder.mkdir()
    write_tokenizer(folder, data, **config)
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    return read_lexicon(tokenizer)


def found(mine: Lexicon, theirs: Lexicon, level: Any = "exact") -> dict[str, tuple[str, str]]:
    """By token of `theirs`: the token of `mine`, and how."""
    names = {number: token for token, number in mine.tokenizer.tokens.items()}
    count = len(theirs.tokenizer.tokens)
    made = match(mine, theirs, count, len(names), level)
    rows = {number: token for token, number in theirs.tokenizer.tokens.items()}
    assert sorted([*made.how, *made.missing]) == sorted(rows)
    return {rows[row]: (names[made.rows[row]], how) for row, how in made.how.items()}


def test_letters_of_bytes_are_those_of_the_tokenizers_library():
    pre = pytest.importorskip("tokenizers.pre_tokenizers")
    assert set(byte_letters()) == set(pre.ByteLevel.alphabet())
    assert byte_letters()[32] == "Ġ" and byte_letters()[10] == "Ċ" and byte_letters()[65] == "A"


@pytest.mark.parametrize(
    ("make", "kind", "piece", "text"),
    [
        (byte_level, "bytes", "Ġthe", b" the"),
        (byte_level, "bytes", "Ã©", "é".encode()),
        (spaced, "space", "▁thé", " thé".encode()),
        (word_pieces, "continuing", "##ing", b"ing"),
        (word_pieces, "continuing", "the", b" the"),
        (tokenizer_json, "plain", "the", b"the"),
    ],
)
def test_spellings(make, kind, piece, text):
    spelling = spelling_of(make(["a"]))
    assert spelling.kind == kind
    assert spelling.text(piece) == text
    assert spelling.piece(text) == piece


def test_a_sentencepiece_normalizer_also_marks_spaces():
    steps = [{"type": "Prepend", "prepend": "▁"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]  # fmt: skip
    data = tokenizer_json(["a"], normalizer={"type": "Sequence", "normalizers": steps})
    assert spelling_of(data) == Spelling("space")


def test_words_are_told_from_their_middles_across_spellings(tmp_path):
    mine = lexicon(tmp_path / "a", byte_level(["Ġthe", "ing", "the", "Ã©"]))
    other = lexicon(tmp_path / "b", spaced(["▁the", "ing", "é", "▁dog"]))
    made = found(mine, other)
    assert made["▁the"] == ("Ġthe", "exact")
    assert made["ing"] == ("ing", "exact")
    assert made["é"] == ("Ã©", "exact")
    assert "▁dog" not in made and "<0x0A>" not in made
    back = found(other, mine)
    assert back["Ġthe"] == ("▁the", "exact")
    assert "the" not in back
    words = lexicon(tmp_path / "c", word_pieces(["the", "##ing", "ing"]))
    assert found(mine, words)["the"] == ("Ġthe", "exact")
    assert found(mine, words)["##ing"] == ("ing", "exact")
    assert "ing" not in found(mine, words)  # mine has no " ing"


def test_the_same_letters_may_be_another_text(tmp_path):
    mine = lexicon(tmp_path / "a", byte_level([]))
    other = lexicon(tmp_path / "b", spaced(["Ġ"]))
    assert "Ġ" in mine.tokenizer.tokens and "Ġ" not in found(mine, other)


def test_bytes_only_when_asked(tmp_path):
    mine = lexicon(tmp_path / "a", byte_level([]))
    other = lexicon(tmp_path / "b", spaced(["a"]))
    made = found(mine, other, "byte")
    assert made["<0x0A>"] == ("Ċ", "byte") and made["<0xE4>"] == ("ä", "byte")
    assert made["a"] == ("a", "exact")
    back = found(other, mine, "byte")
    assert back["Ċ"] == ("<0x0A>", "byte") and back["a"] == ("a", "exact")
    assert "Ċ" not in found(other, mine)


def test_the_longest_prefix(tmp_path):
    mine = lexicon(tmp_path / "a", byte_level(["Ġhouse"]))
    other = lexicon(tmp_path / "b", byte_level(["Ġhouseboat", "Ġxyz", "zebra"]))
    made = found(mine, other, "prefix")
    assert made["Ġhouseboat"] == ("Ġhouse", "prefix")
    assert "Ġxyz" not in made  # a space is no beginning, and " x" is none of mine
    assert made["zebra"] == ("z", "prefix")
    assert "Ġhouseboat" not in found(mine, other, "byte")


def test_roles_stand_in_for_names(tmp_path):
    mine = lexicon(tmp_path / "a", tokenizer_json([*SPECIALS, "a"]), pad_token="<unk>")
    data = tokenizer_json(["<unk>", "a"], ["<|begin|>", "<|end|>", "<|other|>"])
    other = lexicon(tmp_path / "b", data, bos_token="<|begin|>", eos_token={"content": "<|end|>"})
    made = found(mine, other)
    assert made["<|begin|>"] == ("<s>", "role") and made["<|end|>"] == ("</s>", "role")
    assert made["a"] == ("a", "exact") and "<|other|>" not in made


def test_a_special_token_is_no_text(tmp_path):
    mine = lexicon(tmp_path / "a", tokenizer_json([*SPECIALS, "<", "<|"]))
    other = lexicon(tmp_path / "b", tokenizer_json([*SPECIALS], ["<|x|>"]))
    assert "<|x|>" not in found(mine, other, "prefix")


@pytest.mark.parametrize("make", [byte_level, spaced])
def test_pieces_are_those_of_the_tokenizer_itself(make, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    space = "Ġ" if make is byte_level else "▁"
    words = [f"{space}house", "boat", "ing", f"{space}ho"]
    mine = lexicon(tmp_path / "a", make(words))
    cutter = Cutter(mine, len(mine.tokenizer.tokens))
    reader = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert (
        cutter.cut(b" houseboating")
        == reader.encode(
            " houseboating" if make is byte_level else "houseboating", add_special_tokens=False
        ).ids
    )
    names = {n: t for t, n in mine.tokenizer.tokens.items()}
    assert [names[row] for row in cutter.cut(b"boating")] == ["boat", "ing"]


def test_pieces_of_bytes_and_of_marked_words(tmp_path):
    pytest.importorskip("tokenizers")
    mine = lexicon(tmp_path / "a", spaced(["▁a"]))
    names = {n: t for t, n in mine.tokenizer.tokens.items()}
    assert [names[r] for r in Cutter(mine, 999).cut(b"\xe4\xbd")] == ["<0xE4>", "<0xBD>"]
    words = lexicon(tmp_path / "b", word_pieces(["un", "##do", "##ing", "do"]))
    names = {n: t for t, n in words.tokenizer.tokens.items()}
    cutter = Cutter(words, 999)
    assert [names[r] for r in cutter.cut(b" undoing")] == ["un", "##do", "##ing"]
    assert [names[r] for r in cutter.cut(b"doing")] == ["##do", "##ing"]
    assert cutter.cut(b" unxyz") == [] and cutter.cut(b"") == []
