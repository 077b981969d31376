"""Begin, end and padding of the output are those of the tokenizer it gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import model, plain, tokenizer_json, write_tokenizer

from mergewise.engine import merge
from mergewise.errors import MergewiseError
from mergewise.plan import build_plan

END = "<|im_end|>"


def document(root: Path, **parts: Any) -> dict[str, Any]:
    models = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in ("a", "b")]
    return {"merge_method": "linear", "models": models, **parts}


def ids(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`a` ends with ``</s>``, and says so for generation; `b` and `t` with ``<|im_end|>``."""
    model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    told = {"eos_token_id": [1], "pad_token_id": 2, "top_k": 5}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(told))
    model(tmp_path / "b", tokenizer_json(plain(40), [END]), 41, eos_token_id=40, seed=1)
    (tmp_path / "t").mkdir()
    write_tokenizer(tmp_path / "t", tokenizer_json(plain(40), [END]), eos_token=END)
    return tmp_path


@pytest.mark.parametrize("source", ["b", "t"])
def test_generation_ends_as_the_tokenizer_says(root: Path, source: str) -> None:
    """Also where the generation config is another model's, and for a tokenizer without a model."""
    merge(document(root, tokenizer_source=str(root / source)), root / "out")
    assert ids(root / "out", "config.json")["eos_token_id"] == 40
    generation = ids(root / "out", "generation_config.json")
    assert (generation["eos_token_id"], generation["top_k"]) == (40, 5)


def test_a_stage_hands_its_special_tokens_on(root: Path) -> None:
    first = document(root, tokenizer_source=str(root / "b")) | {"name": "first"}
    then = {"merge_method": "linear", "models": [{"model": "first", "parameters": {"weight": 1}}]}
    merge("\n---\n".join(json.dumps(part) for part in (first, then)), root / "out")
    assert ids(root / "out", "config.json")["eos_token_id"] == 40
    assert ids(root / "out", "generation_config.json")["eos_token_id"] == 40


def test_the_bases_own_are_kept(root: Path) -> None:
    merge(document(root, tokenizer_source="union"), root / "out")
    assert ids(root / "out", "config.json")["eos_token_id"] == 1
    assert ids(root / "out", "generation_config.json")["eos_token_id"] == [1]


def test_a_generation_config_from_elsewhere_is_not_taken(root: Path) -> None:
    (root / "secret.json").write_text('{"secret": 1}')
    (root / "a" / "generation_config.json").unlink()
    (root / "a" / "generation_config.json").symlink_to(root / "secret.json")
    merge(document(root, tokenizer_source="union"), root / "out")
    assert not (root / "out" / "generation_config.json").exists()


def test_padding_without_measure_is_refused(root: Path) -> None:
    tokenizer = {"source": "union", "pad_to_multiple_of": 10**12}
    with pytest.raises(MergewiseError, match=r"1,000,000,000,000 rows; at most 4,194,304"):
        build_plan(document(root, tokenizer=tokenizer))
