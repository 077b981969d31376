"""Model references."""

from __future__ import annotations

import pytest

from mergewise.recipe import ModelRef, load_recipe


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", ModelRef("org/name")),
        ("org/name@refs/pr/1", ModelRef("org/name", "refs/pr/1")),
        ("hf://org/name@v1", ModelRef("hf://org/name", "v1")),
        ("a@1+../b@2", ModelRef("a", "1", ModelRef("../b", "2"))),
        ("E:\\models\\x y", ModelRef("E:\\models\\x y")),
        ("D:/a b/c", ModelRef("D:/a b/c")),
    ],
)
def test_text_and_back(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize("text", ["", "@a", "a@", "+a", "a+", "a+b+c", "a@b@c", "a+b@"])
def test_no_reference(text: str) -> None:
    with pytest.raises(ValueError):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("written", "ref"),
    [
        ("{path: a, revision: 0123}", ModelRef("a", "0123")),
        ("{path: x@y+z}", ModelRef("x@y+z")),
        ("{model: a@b}", ModelRef("a", "b")),
        (
            "{model: {path: a, revision: b}, lora: {path: c}, override_architecture: L}",
            ModelRef("a", "b", ModelRef("c"), "L"),
        ),
    ],
)
def test_mappings(written: str, ref: ModelRef) -> None:
    text = f"merge_method: linear\nmodels: [{{model: {written}, parameters: {{weight: 1}}}}]\n"
    assert load_recipe(text).output.models == (ref,)
