"""Kinds of tokenizers, and older files that are converted."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import llama_config, llama_shapes, load, random_state, save
from small_vocabularies import added, like, model, plain, tokenizer_json

from mergewise.engine import merge
from mergewise.errors import CheckpointError, MissingExtraError
from mergewise.vocabulary import read_tokenizer

HEAD = "lm_head.weight"
CHAT = ["<|im_start|>", "<|im_end|>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "lazy", "##s", "dog", "a"]


def wordpiece(words: list[str], extra: list[str] | None = None) -> dict[str, Any]:
    vocab = {word: i for i, word in enumerate(words)}
    tokens = [added(w, vocab[w]) for w in words if w.startswith("[")]
    tokens += [added(w, len(words) + i) for i, w in enumerate(extra or [])]
    return tokenizer_json([]) | {
        "added_tokens": tokens,
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    }  # fmt: skip


def unigram(extra: list[str] | None = None) -> dict[str, Any]:
    pieces = ["<s>", "</s>", "<unk>", "▁the", "▁", "t", "h", "e", "d", "o", "g"]
    scored = [[piece, -float(i)] for i, piece in enumerate(pieces)]
    tokens = [added(piece, i) for i, piece in enumerate(pieces[:3])]
    tokens += [added(w, len(pieces) + i) for i, w in enumerate(extra or [])]
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    return tokenizer_json([]) | {
        "added_tokens": tokens,
        "pre_tokenizer": spaces,
        "decoder": spaces,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": scored, "byte_fallback": False},
    }


def union_of(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> Path:
    for name, data in (("a", one), ("b", other)):
        vocab = data["model"]["vocab"]
        count = len({*(e[0] if isinstance(e, list) else e for e in vocab),
                     *(e["content"] for e in data["added_tokens"])})  # fmt: skip
        model(tmp_path / name, data, count, seed=ord(name))
    return merged(tmp_path)


def merged(tmp_path: Path) -> Path:
    models = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    document = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    merge(document, tmp_path / "out")
    return tmp_path / "out"


def backend(folder: Path) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("make", [lambda e: wordpiece(WORDS, e), unigram])
def test_special_tokens_join_any_kind(make: Any, tmp_path: Path) -> None:
    out = union_of(tmp_path, make([]), make(CHAT))
    made, before = backend(out), backend(tmp_path / "a")
    count = before.get_vocab_size()
    assert made.get_vocab_size() == count + 2
    assert made.encode("the dog").ids == before.encode("the dog").ids
    ids = made.encode("<|im_start|>the dog<|im_end|>").ids
    assert (ids[0], ids[-1]) == (count, count + 1)
    assert torch.allclose(load(out)[HEAD][count:], load(tmp_path / "b")[HEAD][count:], atol=1e-6)


def test_words_of_another_wordpiece(tmp_path: Path) -> None:
    out = union_of(tmp_path, wordpiece(WORDS), wordpiece([*WORDS[:5], "dog", "cat", "##s"]))
    made = backend(out)
    assert made.get_vocab()["cat"] == len(WORDS)
    assert made.encode("the cat").tokens == ["the", "cat"]


def test_gaps_between_ids_are_kept(tmp_path: Path) -> None:
    """`tokenizers` would give added tokens other ids after a gap; the files see to it."""
    vocab = {token: i for i, token in enumerate(plain(30))} | {"_tok_39": 39}
    model(tmp_path / "a", tokenizer_json(vocab), 40)
    model(tmp_path / "b", tokenizer_json(plain(30), CHAT), 32, seed=1)
    out = merged(tmp_path)
    assert backend(out).get_vocab()["<|im_end|>"] == 41
    assert torch.allclose(load(out)[HEAD][41], load(tmp_path / "b")[HEAD][31], atol=1e-6)


def older(folder: Path, rows: int, files: dict[str, str], kind: str) -> None:
    shapes = llama_shapes(vocab=rows)
    save(folder, random_state(shapes, 0, torch.float32), llama_config(shapes))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")


def test_vocab_txt_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    older(tmp_path / "a", 10, {"vocab.txt": "\n".join(WORDS) + "\n"}, "BertTokenizer")
    found = read_tokenizer(tmp_path / "a")
    assert found is not None and found.kind == "WordPiece"
    assert found.tokens == {word: i for i, word in enumerate(WORDS)}
    base = load(tmp_path / "a")
    model(tmp_path / "b", wordpiece(WORDS, CHAT), 12, like(base, 12, 1))
    out = merged(tmp_path)
    assert backend(out).get_vocab()["<|im_end|>"] == 11 and not (out / "vocab.txt").exists()


def test_vocab_json_and_merges_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    vocab = {"<|endoftext|>": 0, "t": 1, "h": 2, "th": 3}
    files = {"vocab.json": json.dumps(vocab), "merges.txt": "#version: 0.2\nt h\n"}
    older(tmp_path / "a", 4, files, "GPT2Tokenizer")
    found = read_tokenizer(tmp_path / "a")
    assert found is not None and (found.kind, found.tokens) == ("BPE", vocab)


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "sp"), vocab_size=45, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    older(tmp_path / "a", 45, {}, "LlamaTokenizer")
    shutil.copy(tmp_path / "sp.model", tmp_path / "a" / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    found = read_tokenizer(tmp_path / "a")
    assert found is not None
    assert found.tokens == {pieces.id_to_piece(i): i for i in range(45)}
    model(tmp_path / "b", tokenizer_json([pieces.id_to_piece(i) for i in range(45)], CHAT), 47)
    out = merged(tmp_path)
    assert not (out / "tokenizer.model").exists()
    assert backend(out).encode("the lazy fox", add_special_tokens=False).ids == pieces.encode(
        "the lazy fox"
    )


def test_broken_older_files_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    older(tmp_path / "a", 4, {"vocab.json": "{", "merges.txt": "x"}, "GPT2Tokenizer")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, and transformers cannot"):
        read_tokenizer(tmp_path / "a")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    older(tmp_path / "a", 10, {"vocab.txt": "\n".join([*WORDS, "more"])}, "BertTokenizer")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("transformers"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"mergewise\[hf\]"):
        read_tokenizer(tmp_path / "a")


def test_a_link_of_an_older_file_stays_in_the_folder(tmp_path: Path) -> None:
    older(tmp_path / "a", 10, {}, "BertTokenizer")
    (tmp_path / "elsewhere.txt").write_text("\n".join(WORDS))
    (tmp_path / "a" / "vocab.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        read_tokenizer(tmp_path / "a")
