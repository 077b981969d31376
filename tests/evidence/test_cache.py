"""Kept scores come back the same, and broken ones not at all."""

import importlib
import logging
import math
import os

import numpy
import pytest

from mergewise.evidence._cache import ScoreCache, code_of, key_of, plain
from mergewise.evidence.evaluators import Score

SCORE = Score(
    {"accuracy": 0.5, "nll": math.nan},
    {"correct": [1, 0], "prediction": ["ä", None], "loss": [0.25, math.inf]},
    examples=2,
    seconds=1.5,
    notes=("cut",),
)


def test_a_score_comes_back_as_it_was(tmp_path):
    cache = ScoreCache(tmp_path / "new" / "folder")
    assert cache.get("ab" * 32) is None
    cache.put("ab" * 32, SCORE)
    found = cache.get("ab" * 32)
    assert repr(found) == repr(SCORE)
    assert cache.get("cd" * 32) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"metrics": {}}', b"[" * 100_000,
     b'{"metrics": {"a": "x"}, "outcomes": {}, "examples": 1, "seconds": 1, "notes": []}',
     b'{"metrics": {"a": 1}, "outcomes": {"b": 3}, "examples": 1, "seconds": 1, "notes": []}'],
)  # fmt: skip
def test_a_broken_file_is_one_that_is_not_there(tmp_path, content):
    cache = ScoreCache(tmp_path)
    cache.put("ab" * 32, SCORE)
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(content)
    assert cache.get("ab" * 32) is None
    cache.put("ab" * 32, SCORE)
    assert repr(cache.get("ab" * 32)) == repr(SCORE)


def test_a_folder_that_cannot_be_written_is_a_warning_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = ScoreCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        cache.put("ab" * 32, SCORE)
        cache.put("cd" * 32, SCORE)
    (record,) = caplog.records
    assert record.message.startswith("scores are not kept for the next run: ")


def test_keys_change_with_every_part_and_need_all_of_them():
    parts = {"model": "m", "data": {"test": "d"}, "head": "", "versions": {"torch": "2"}}
    keys = [key_of(parts)]
    for change in ({"model": "n"}, {"data": {"test": "e"}}, {"data": {"train": "d"}},
                   {"head": "h"}, {"versions": {"torch": "3"}}):  # fmt: skip
        keys.append(key_of(parts | change))
    assert len(set(keys)) == len(keys) and None not in keys
    assert key_of(dict(reversed(parts.items()))) == keys[0]
    assert key_of(parts | {"model": None}) is None
    assert key_of(parts | {"data": {"test": None}}) is None


def test_numbers_become_pythons_own():
    score = plain(
        Score({"a": numpy.float32(0.5)}, {"p": numpy.array([1, 2]), "q": (numpy.int64(3), "x")})
    )
    assert type(score.metrics["a"]) is float
    assert score.outcomes == {"p": [1, 2], "q": [3, "x"]}
    assert type(score.outcomes["q"][0]) is int


def test_the_scores_read_longest_ago_go_first(tmp_path):
    cache = ScoreCache(tmp_path)
    keys = [letter * 64 for letter in "abcd"]
    for age, key in enumerate(keys):
        cache.put(key, SCORE)
        (file,) = tmp_path.rglob(f"{key}.json")
        os.utime(file, (1e9 + age, 1e9 + age))
    cache.get(keys[0])
    cache.trim(2 * file.stat().st_size)
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True]
    cache.trim()
    assert cache.get(keys[0]) is not None
    ScoreCache(tmp_path / "none").trim()


def test_the_code_of_a_plugin_counts(tmp_path, monkeypatch):
    marks = set()
    monkeypatch.syspath_prepend(tmp_path)
    for value in (1, 2):
        (tmp_path / f"mine{value}.py").write_text(f"class Mine:\n    value = {value}\n")
        marks.add(code_of(importlib.import_module(f"mine{value}").Mine))
    assert len(marks) == 2
