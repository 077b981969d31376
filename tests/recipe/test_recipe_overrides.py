"""``--set KEY=VALUE``."""

from __future__ import annotations

import pytest

from mergewise.errors import RecipeError
from mergewise.recipe import Recipe, load_recipe

TEXT = """
name: first
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 1}
---
merge_method: slerp
base_model: first
models: [{model: c}]  # a comment
parameters: {t: 0.5}
"""


def load(*overrides: str) -> Recipe:
    return load_recipe(TEXT, overrides=overrides)


def test_values_are_set_in_the_last_document_or_a_named_one() -> None:
    recipe = load(
        "parameters.t=[0, 1e-1]",
        "dtype=float32",
        "models.-1.model=d@x",
        "first.models.1.parameters.weight=0.25",
        "first.parameters.normalize=false",
    )
    first, last = recipe.stages
    assert last.parameters["t"].conditions[0].value == (0, 0.1)
    assert (last.dtype, first.dtype) == ("float32", None)
    assert str(last.models[1]) == "d@x"
    assert first.modules[0].slices[0].sources[1].parameters["weight"].at(0, "")[0] == 0.25  # type: ignore[index]
    assert first.parameters["normalize"].conditions[0].value is False


def test_the_origin_of_a_value_is_the_override() -> None:
    setting = load("parameters.t=0.3").output.parameters["t"]
    found = setting.at(0.5, "x")
    assert found == (0.3, "--set parameters.t=0.3:1:14 parameters.t")


def test_the_text_and_digest_are_those_of_the_changed_document() -> None:
    recipe = load("dtype=float16")
    assert recipe.digest != load().digest
    assert load_recipe(recipe.text).digest == recipe.digest
    assert load().text == TEXT


def test_an_empty_value_unsets() -> None:
    assert load("dtype=float32", "dtype=").output.dtype is None


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("dtype", "--set dtype:1:1: KEY=VALUE expected"),
        ("a..b=1", "KEY=VALUE expected"),
        ("paramters.t=1", "the recipe has no `paramters`; did you mean `parameters`?"),
        ("slices.0=1", "the recipe has no `slices`"),
        ("models.3.model=x", "models is a list of 1; an index from 0 to 0 expected, got `3`"),
        ("models.x.model=x", "an index from 0 to 0 expected, got `x`"),
        ("base_model.x=1", "base_model is text; it has no `x`"),
        ("parameters.t=x", "parameters.t=x:1:14: parameters.t: float expected, got 'x'"),
        ("dtpye=float32", "unknown key `dtpye`; did you mean `dtype`?"),
        ("parameters.t=[1", "YAML syntax"),
    ],
)
def test_bad_overrides(override: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(override)
    assert wanted in str(caught.value)


def test_lenient_does_not_forgive_a_misspelled_override() -> None:
    with pytest.raises(RecipeError, match="dtpye"):
        load_recipe(TEXT, overrides=["dtpye=float32"], lenient=True)
