"""Tokenizer files that nobody vouches for: an error for each, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import added, like, model, plain, tokenizer_json

from mergewise.errors import CheckpointError, RecipeError
from mergewise.plan import build_plan
from mergewise.vocabulary import read_tokenizer

BAD_IDS = [-1, -(2**40), 2**22, 2**31, 2**63, 10**30, 1.5, 1e300, True, None, "3", [], {}, [3]]
BAD_TEXT = [
    b"", b" ", b"{", b"[]", b"null", b"1", b'"x"', b"{}", b"\x80\x81", b"\xff\xfe{}", b"{'a': 1}",
    b'{"model": }', b'{"model": {}} x', b"[" * 5000, b'{"a":' * 5000, b"{" + b'"a":{' * 200,
    b'{"model": {"vocab": {"a": 1' + b"0" * 200 + b"}}}",
    b'{"model": {"vocab": {"a": 0, "a": 1}}}', b'{"model": {}, "model": {}}',
    b'{"model": {"vocab": {"a": NaN}}}', b'{"model": {"vocab": {"a": Infinity}}}',
    b"\x00" * 1000, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1",
]  # fmt: skip
BAD_MODELS: list[Any] = [
    None, [], "BPE", 3, {}, {"vocab": None}, {"vocab": 3}, {"vocab": "abc"}, {"vocab": [1, 2]},
    {"vocab": [["a"]]}, {"vocab": [["a", "b"]]}, {"vocab": [[1, 2.0]]}, {"vocab": [["a", True]]},
    {"vocab": [["a", 0.0], ["a", 1.0]]}, {"vocab": {"a": 0, "b": 0}}, {"vocab": [{"a": 1}]},
    {"vocab": {"a": 0}, "merges": 3}, {"vocab": {"a": 0}, "merges": ["ab"]},
    {"vocab": {"a": 0}, "merges": [["a"]]}, {"vocab": {"a": 0}, "merges": [["a", 1]]},
    {"vocab": {"a": 0}, "merges": {"a": "b"}}, {"vocab": {"a": 0}, "merges": [[["a"], "b"]]},
]  # fmt: skip
BAD_ADDED: list[Any] = [
    3, "x", {"a": 1}, [3], ["<x>"], [None], [{}], [{"id": 64}], [{"content": "<x>"}],
    [{"id": 64, "content": 3}], [{"id": 64, "content": ""}], [added("<x>", 99)],
    [added("<x>", 64), added("<x>", 64)], [added("<x>", 64), added("<y>", 64)],
    [added("<x>", 64, special="yes")], [added("<x>", 64, lstrip=1)], [added("<x>", 5)],
]  # fmt: skip


def with_id(number: Any) -> dict[str, Any]:
    data = tokenizer_json(plain(64))
    data["model"]["vocab"]["_tok_9"] = number
    return data


CASES = {
    **{f"id {n!r:.20}": json.dumps(with_id(n)).encode() for n in BAD_IDS},
    **{
        f"added id {n!r:.20}": json.dumps(
            tokenizer_json(plain(64)) | {"added_tokens": [{"id": n, "content": "<x>"}]}
        ).encode()
        for n in BAD_IDS
    },
    **{f"text {i}": text for i, text in enumerate(BAD_TEXT)},
    **{f"model {i}": json.dumps({"model": m}).encode() for i, m in enumerate(BAD_MODELS)},
    **{
        f"added {i}": json.dumps(tokenizer_json(plain(64)) | {"added_tokens": entries}).encode()
        for i, entries in enumerate(BAD_ADDED)
    },
}


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 80


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_a_bad_tokenizer_is_an_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)  # sparse: it only says that it is large


def _outside(path: Path) -> None:
    target = path.parent.parent / "secret.json"
    target.write_text(json.dumps(tokenizer_json(plain(64))))
    path.symlink_to(target)


def _itself(path: Path) -> None:
    path.symlink_to(path)


def _nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "absent")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_folder, _pipe, _huge, _outside, _itself, _nowhere, _device])
def test_a_file_that_is_none(make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", list(CASES)[::9])
def test_a_plan_refuses_it_with_its_place(name: str, tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40)), 42, like(base, 42, 1))
    (tmp_path / "b" / "tokenizer.json").write_bytes(CASES[name])
    models = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    document = {"merge_method": "linear", "models": models}
    for asked in ({}, {"tokenizer_source": "union"}, {"tokenizer_source": "base"}):
        with pytest.raises(RecipeError, match=r"b/tokenizer\.json"):
            build_plan(document | asked)


def test_a_bad_tokenizer_is_only_told_where_it_does_not_matter(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40)), 40, like(base, 40, 1))
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    models = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    plan = build_plan({"merge_method": "linear", "models": models})
    assert any("tokenizers not compared" in warning for warning in plan.warnings)


def test_what_is_put_into_every_text_cannot_be_left_out(tmp_path: Path) -> None:
    from mergewise.engine import merge
    from mergewise.errors import IncompatibleModelsError

    data = tokenizer_json(plain(40), ["<bos>"])
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, *sequence],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [40], "tokens": ["<bos>"]}},
    }  # fmt: skip
    base = model(tmp_path / "a", data, 40)
    model(tmp_path / "b", tokenizer_json(plain(40)), 40, like(base, 40, 1))
    models = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    document = {"merge_method": "linear", "models": models, "tokenizer_source": "base"}
    with pytest.raises(IncompatibleModelsError, match="'<bos>' into every text"):
        merge(document, tmp_path / "out")
    assert not (tmp_path / "out").exists()
