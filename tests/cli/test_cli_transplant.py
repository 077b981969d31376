"""`mergewise transplant`, from end to end."""

from __future__ import annotations

import json

import pytest
from small_vocabularies import model, plain, tokenizer_json


@pytest.fixture
def pair(here):
    model(here / "a", tokenizer_json(plain(40)), 40, seed=1)
    model(here / "d", tokenizer_json(plain(44)), 44, seed=2)
    return here


def test_a_transplantation_and_its_report(run, pair):
    done = run("transplant", "a", "d", "out", "-k", 4)
    assert (done.exit_code, done.stdout) == (0, "out\n"), done.stderr
    assert "embedding: 40 of the same text, 4 made" in done.stderr
    assert "2 tensors changed" in done.stderr
    again = run("transplant", "a", "d", "out", "-k", 4, "--overwrite", "--json", "-a", "nearest",
                "-w", "barycentric", "--metric", "cosine", "--pad-to-multiple-of", 64)  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["measured"]["rows"] == 64


def test_it_is_a_transform_as_any_other(run, pair):
    done = run("transform", "transplant", "a", "-o", "out", "--model", "d", "--set", "k=4")
    assert done.exit_code == 0, done.stderr
    assert "transplant" in run("transforms").stdout
    assert "match_for" in run("transforms", "transplant").stdout


def test_mistakes(run, pair):
    assert run("transplant", "a", "d").exit_code == 2
    assert run("transplant", "a", "d", "out", "-a", "best").exit_code == 2
    done = run("transplant", "a", "nowhere", "out")
    assert done.exit_code != 0 and "nowhere" in done.stderr
    assert not (pair / "out").exists()
    (pair / "out").mkdir()
    (pair / "out" / "x").write_text("x")
    done = run("transplant", "a", "d", "out", "-k", 4)
    assert done.exit_code != 0 and "--overwrite" in done.stderr
