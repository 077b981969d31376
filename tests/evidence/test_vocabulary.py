"""Tokenizers with more tokens than their model knows, found before a model is loaded."""

import json

import pytest
from small_language import byte_tokenizer, random_llama

from mergewise.checkpoint import open_checkpoint
from mergewise.errors import DataError, MergewiseError
from mergewise.evidence import Data, collect, evaluate
from mergewise.evidence._vocabulary import highest_id, known_tokens, see_tokens

WORDS = "row 2 has the token id 259, but .* knows 259 tokens"


@pytest.fixture
def model(tmp_path):
    """A model of 259 tokens with a tokenizer of 260."""
    random_llama(0).module.save_pretrained(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def unloadable(monkeypatch):
    """No model may be loaded."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    for module in ("mergewise.evidence._run", "mergewise.evidence.statistics._collect"):
        monkeypatch.setattr(f"{module}.open_model", refuse)


def test_what_files_tell(model):
    assert known_tokens(open_checkpoint(model)) == 259 and highest_id(model) == 259
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0.0]] * 7}}))
    assert highest_id(model) == 6
    (model / "tokenizer.json").write_text("[]")
    assert highest_id(model) is None
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("a\nb\n")
    assert highest_id(model) == 2


def test_collect_and_evaluate_find_it_before_a_model_is_loaded(model, tmp_path, unloadable):
    data = Data([{"text": "plain"}, {"text": "an <image>"}])
    with pytest.raises(DataError, match=WORDS):
        collect("fisher", model, data, tmp_path / "out")
    tasks = {"tasks": [{"name": "t", "kind": "language_model", "data": data}]}
    with pytest.raises(MergewiseError, match=WORDS):
        evaluate([model], tasks)


def test_a_token_that_no_text_has_is_no_harm(model, tmp_path):
    collect("input_moments", model, ["plain"], tmp_path / "out")
    tasks = {"tasks": [{"name": "t", "kind": "language_model", "data": Data([{"text": "ok"}])}]}
    assert not evaluate([model], tasks).failures


def test_rows_are_counted_as_in_the_file(model):
    data = Data([{"text": "plain"}] * 4 + [{"text": "<image>"}], rows=(2, None), share=(0, 2))
    with pytest.raises(DataError, match="row 5 has"):
        see_tokens("m", open_checkpoint(model), data, "causal_lm")


def test_texts_are_looked_at_only_where_a_tokenizer_knows_more(model, monkeypatch):
    byte_tokenizer().save_pretrained(model)

    def refuse(*_):
        raise AssertionError("the tokenizer was loaded")

    monkeypatch.setattr("mergewise.evidence.models._live._tokenizer", refuse)
    see_tokens("m", open_checkpoint(model), Data([{"text": "x"}]), "causal_lm")
