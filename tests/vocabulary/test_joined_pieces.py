"""Unions of trained tokenizers: texts go round, and pieces of both are found in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import added, ids_of, model

from mergewise.engine import merge
from mergewise.errors import NotBuiltYetError
from mergewise.plan import build_plan
from mergewise.vocabulary import read_tokenizer, union
from mergewise.vocabulary._edit import edited_content

tokenizers = pytest.importorskip("tokenizers")
models, trainers = tokenizers.models, tokenizers.trainers
split, decode, normal = tokenizers.pre_tokenizers, tokenizers.decoders, tokenizers.normalizers

ENGLISH = "the sister was sitting by the river and was beginning to get very tired of sitting there"
GERMAN = "die schwester war an den fluss gegangen und wurde vom sitzen dort allmählich sehr müde"
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level(text: str) -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = split.ByteLevel(add_prefix_space=False), decode.ByteLevel()
    alphabet = split.ByteLevel.alphabet()
    made.train_from_iterator(
        [text] * 9,
        trainers.BpeTrainer(vocab_size=310, special_tokens=SPECIALS, initial_alphabet=alphabet),
    )
    return made


def like_llama_2(text: str) -> Any:
    """No pre-tokenizer; a normalizer that puts a space before whatever it is given."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = split.Metaspace(prepend_scheme="always")
    alphabet = sorted(set(ENGLISH + GERMAN))
    made.train_from_iterator(
        [text] * 9,
        trainers.BpeTrainer(vocab_size=80, special_tokens=SPECIALS, initial_alphabet=alphabet),
    )
    data = json.loads(made.to_str()) | {"pre_tokenizer": None}
    made = tokenizers.Tokenizer.from_str(json.dumps(data))
    made.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
    made.decoder = decode.Sequence(
        [decode.Replace("▁", " "), decode.Fuse(), decode.Strip(" ", 1, 0)]
    )
    return made


def unigram(text: str) -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = split.Metaspace(), decode.Metaspace()
    alphabet = sorted(set(ENGLISH + GERMAN))
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIALS, unk_token="<unk>", initial_alphabet=alphabet
    )
    made.train_from_iterator([text] * 9, trainer)
    return made


def wordpiece(text: str) -> Any:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = split.BertPreTokenizer(), decode.WordPiece()
    alphabet = sorted(set(ENGLISH + GERMAN))
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=SPECIALS, initial_alphabet=alphabet
    )
    made.train_from_iterator([text] * 9, trainer)
    return made


KINDS = [byte_level, like_llama_2, unigram, wordpiece]


def folder(path: Path, data: dict[str, Any]) -> None:
    model(path, data, len(ids_of(data)), seed=len(path.name))


def joined(root: Path, one: Any, other: Any, extra: str = "<|a|>") -> Any:
    """The union of two models with these tokenizers, each with an added token behind the rest."""
    for name, made, token in (("a", one, extra), ("bb", other, "<|b|>")):
        data = json.loads(made.to_str())
        data["added_tokens"].append(added(token, len(ids_of(data))))
        folder(root / name, data)
    merged = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in ("a", "bb")]
    document = {"merge_method": "linear", "models": merged, "tokenizer_source": "union"}
    merge(document, root / "out")
    return tokenizers.Tokenizer.from_file(str(root / "out" / "tokenizer.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_both_go_round(kind: Callable[[str], Any], tmp_path: Path) -> None:
    one, other = kind(ENGLISH), kind(GERMAN)
    made = joined(tmp_path, one, other)
    for text in (ENGLISH, GERMAN):
        assert made.decode(made.encode(text).ids) == text
    english, german = made.encode(ENGLISH), made.encode(GERMAN)
    # the base's text is split no finer than before, the other's into pieces that the base lacks
    assert len(english.ids) <= len(one.encode(ENGLISH).ids)
    assert len(german.ids) < len(one.encode(GERMAN).ids)
    assert any(number > made.token_to_id("<|a|>") for number in german.ids)
    assert made.encode("<|a|>").tokens[-1] == "<|a|>"
    assert made.encode("<|b|>").tokens[-1] == "<|b|>"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_plan(kind: Callable[[str], Any], tmp_path: Path) -> None:
    one, other = kind(ENGLISH), kind(GERMAN)
    made = joined(tmp_path, one, other).get_vocab()
    count = one.get_vocab_size()
    assert {t: n for t, n in made.items() if n < count} == one.get_vocab()
    assert made["<|a|>"] == count and sorted(made.values()) == list(range(len(made)))
    missing = [t for t in other.get_vocab() if t not in one.get_vocab()]
    assert missing and all(made[t] > count for t in missing)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_union(kind: Callable[[str], Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = joined(tmp_path, kind(ENGLISH), kind(GERMAN))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.get_vocab() == made.get_vocab()
    assert loaded(GERMAN)["input_ids"] == made.encode(GERMAN).ids


def test_a_union_of_unions(tmp_path: Path) -> None:
    folder(tmp_path / "a", json.loads(byte_level(ENGLISH).to_str()))
    folder(tmp_path / "bb", json.loads(byte_level(GERMAN).to_str()))
    french = "la soeur était assise au bord de la rivière et commençait à se fatiguer d'y rester"
    folder(tmp_path / "ccc", json.loads(byte_level(french).to_str()))
    parts = [read_tokenizer(tmp_path / n) for n in ("a", "bb", "ccc")]
    one, two, three = (part for part in parts if part is not None)
    inner, _ = union(two, [("ccc", three)])
    outer, _ = union(one, [("inner", inner)])
    plain, _ = union(one, [("bb", two), ("ccc", three)])
    made = [
        tokenizers.Tokenizer.from_str(json.dumps(edited_content(t, json.loads(
            (t.folder / "tokenizer.json").read_text())))) for t in (outer, plain)
    ]  # fmt: skip
    assert made[0].get_vocab() == made[1].get_vocab()
    for text in (ENGLISH, GERMAN, french):
        assert made[0].encode(text).ids == made[1].encode(text).ids
        assert made[0].decode(made[0].encode(text).ids) == text


def test_another_kind_is_told_and_harms_no_text(tmp_path: Path) -> None:
    one = like_llama_2(ENGLISH)
    made = joined(tmp_path, one, wordpiece(ENGLISH))
    assert made.encode(ENGLISH).tokens == one.encode(ENGLISH).tokens
    merged = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in ("a", "bb")]
    plan = build_plan({"merge_method": "linear", "models": merged, "tokenizer_source": "union"})
    assert any("is WordPiece, the output's BPE" in warning for warning in plan.warnings)


def test_a_gap_in_a_unigram_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "a", json.loads(unigram(ENGLISH).to_str()))
    folder(tmp_path / "bb", json.loads(unigram(GERMAN).to_str()))
    one, two = read_tokenizer(tmp_path / "a"), read_tokenizer(tmp_path / "bb")
    assert one is not None and two is not None
    found, _ = union(one, [("bb", two)])
    content = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    content["model"]["vocab"].pop()
    with pytest.raises(NotBuiltYetError, match="has no gaps"):
        edited_content(found, content)
