"""Documents made to hang, to fill memory or to run something."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergewise.errors import RecipeError
from mergewise.recipe import check_recipe, load_recipe

LETTERS = "bcdefghijklm"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + chr(ord(c) - 1)] * 10)}]\n" for c in LETTERS
)
CYCLE: dict[str, object] = {}
CYCLE["a"] = CYCLE

HOSTILE = {
    "deep flow": ("[" * 300_000 + "\n", "nested more than 64 levels"),
    "deep blocks": ("- " * 300_000 + "\n", "nested more than 64 levels"),
    "alias bomb": (BOMB, "aliases expand to more than 50000 values"),
    "alias to itself": ("a: &a [*a]\n", "contains an alias to itself"),
    "merge of itself": ("a: &a {<<: *a}\n", "contains an alias to itself"),
    "many values": ("[" + "1," * 60_000 + "1]\n", "more than 50000 values"),
    "many unknown keys": ("".join(f"k{i}: 1\n" for i in range(9_000)), "more problems"),
    "one model many times": (
        "merge_method: linear\nmodels:\n" + "- model: a\n" * 9_000,
        "more problems",
    ),
    "long number": ("merge_method: linear\nseed: " + "9" * 100_000 + "\n", "cannot be read as a n"),
    "long name": ("merge_method: " + "a" * 500_000 + "\n", "unknown merge method 'aaa"),
    "large": ("#" * 1_000_001 + "\n", "more than 1000000 bytes"),
    "control character": ("merge_method: lin\0ear\n", "1:18: character U+0000 is not allowed"),
    "half a character": ('merge_method: "\\ud800"\n', "half a character"),
    "code": ('a: !!python/object/apply:os.system ["exit"]\n', "is refused: recipes are plain data"),
    "undefined alias": ("merge_method: *x\n", "define it first as `&name`"),
    "mapping as key": ("? {a: 1}\n: 2\n", "a key must be text"),
    "merge of a number": ("<<: 3\n", "`<<` merges mappings; this is a number"),
    "cyclic mapping": (CYCLE, "it contains itself"),
    "object": ({"a": object()}, "only mappings, lists, text and numbers"),
}


@pytest.mark.parametrize(("source", "wanted"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_documents_are_refused_quickly(source: str, wanted: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    assert wanted in str(caught.value)
    assert len(caught.value.diagnostics) <= 101
    assert all(len(d.message) <= 500 for d in caught.value.diagnostics)
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    binary = tmp_path / "x.yml"
    binary.write_bytes(b"merge_method: a\nmodels: \xff\n")
    large = tmp_path / "large.yml"
    large.write_bytes(b"#" * 1_000_001)
    wanted = {
        binary: f"{binary}:2:9: byte 0xff is not UTF-8",
        large: "more than 1000000 bytes",
        tmp_path: "this is a folder",
        tmp_path / "absent.yml": "no such file",
    }
    for path, words in wanted.items():
        with pytest.raises(RecipeError, match=words.replace("\\", "\\\\")):
            load_recipe(path)


def test_anchors_and_merge_keys_are_fine() -> None:
    text = """
merge_method: linear
models:
  - &first
    model: a
    parameters: &p {weight: 1}
  - {<<: *first, model: b}
  - {model: c, parameters: {<<: *p, weight: 2}}
"""
    sources = load_recipe(text).output.modules[0].slices[0].sources
    weights = [s.parameters["weight"].at(0, "x") for s in sources]
    assert [w[0] for w in weights if w] == [1, 1, 2]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = """
    merge_method models slices modules sources model layer_range parameters base_model weight
    filter value t dtype tokenizer tokens source name seed exclude path lora
"""
KEYS = st.sampled_from(WORDS.split())
anything = st.recursive(
    scalars | st.sampled_from(["linear", "slerp", "ties", "a", "base"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, anything, max_size=6))
def test_no_mapping_crashes_the_checker(document: dict[str, object]) -> None:
    found = check_recipe({"merge_method": "ties", **document})
    assert all(d.line >= 1 and d.column >= 1 and d.message for d in found)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_crashes_the_checker(text: str) -> None:
    check_recipe("merge_method: linear\n" + text)
