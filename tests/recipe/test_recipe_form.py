"""What a good document becomes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mergewise.errors import RecipeError
from mergewise.recipe import ModelRef, check_recipe, load_recipe

TIES = """
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.3}
  - model: b@main+lora
    parameters: {weight: 1e-3}
dtype: torch.bfloat16
parameters: {normalize: yes}
"""


def test_models_become_one_slice_with_the_base_added_last() -> None:
    recipe = load_recipe(TIES)
    stage = recipe.output
    [module] = stage.modules
    [slice_] = module.slices
    assert (recipe.path, recipe.text) == ("<recipe>", TIES)
    assert (stage.form, stage.dtype, module.name, slice_.layers) == (
        "models",
        "bfloat16",
        None,
        None,
    )
    assert [(str(s.model), s.layer_range, s.implicit) for s in slice_.sources] == [
        ("a", None, False),
        ("b@main+lora", None, False),
        ("base", None, True),
    ]
    assert slice_.base is slice_.sources[2]
    assert slice_.experts("required") == [0, 1]
    assert slice_.experts("ignored") == [0, 1, 2]
    assert [str(m) for m in stage.models] == ["base", "a", "b@main+lora"]
    assert stage.positions["base_model"].line == 3
    assert not stage.native


def test_a_base_among_the_sources_is_not_added_again() -> None:
    text = TIES.replace("models:\n", "models:\n  - model: base\n")
    sources = load_recipe(text).output.modules[0].slices[0].sources
    assert [str(s.model) for s in sources] == ["base", "a", "b@main+lora"]
    assert not sources[0].implicit


def test_slices_and_modules() -> None:
    text = """
merge_method: slerp
modules:
  text:
    parameters: {t: 0.2}
    slices:
      - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [4, 6]}]
      - base_model: c
        parameters: {t: 0.9}
        sources: [{model: d, layer_range: [2, 3]}]
base_model: a
parameters: {t: 0.1}
"""
    [module] = load_recipe(text).output.modules
    first, second = module.slices
    assert module.name == "text"
    assert (first.layers, first.sources[1].layer_range) == (2, (4, 6))
    assert [(str(s.model), s.layer_range) for s in second.sources] == [("d", (2, 3)), ("c", (2, 3))]
    assert second.base is second.sources[1]
    assert str(second.base_model) == "c"


def test_native_keys() -> None:
    text = TIES + "seed: 7\nexclude: ['*.norm.weight', 'lm_head.*']\nmissing: copy\n"
    stage = load_recipe(text).output
    assert (stage.seed, stage.missing, stage.native) == (7, "copy", True)
    assert stage.excludes("model.norm.weight")
    assert not stage.excludes("model.Norm.weight.x")
    defaults = load_recipe(TIES).output
    assert (defaults.seed, defaults.missing, defaults.exclude) == (None, "error", ())


def test_stages() -> None:
    text = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: first
models: [{model: c}]
parameters: {t: 0.5}
"""
    recipe = load_recipe(text)
    assert [s.name for s in recipe.stages] == ["first", None]
    assert recipe.stage_of(ModelRef("first")) is recipe.stages[0]
    assert recipe.stage_of(ModelRef("first"), before=recipe.stages[0]) is None
    assert recipe.stage_of(ModelRef("c")) is None


def test_a_name_in_a_single_document_is_only_a_title() -> None:
    recipe = load_recipe(TIES + "name: a\n")
    assert recipe.output.name == "a"
    assert recipe.stage_of(ModelRef("a")) is None


def test_digest_is_of_the_meaning() -> None:
    digest = load_recipe(TIES).digest
    lines = TIES.strip().splitlines()
    other = "\n".join(["# a comment", *lines[1:], lines[0], ""])
    assert load_recipe(other).digest == digest
    assert load_recipe(TIES.replace("0.3", "0.4")).digest != digest


def test_a_mapping_is_a_recipe_too() -> None:
    models = [
        {"model": "1e-3", "parameters": {"weight": 1e-05}},
        {"model": Path("x") / "y", "parameters": {"weight": (0, 1)}},
    ]
    recipe = load_recipe({"merge_method": "linear", "models": models})
    assert [str(m) for m in recipe.output.models] == ["1e-3", str(Path("x") / "y")]
    assert load_recipe(recipe.text).digest == recipe.digest
    with pytest.raises(RecipeError, match="2:1: unknown key `modles`; did you mean `models`"):
        load_recipe({"merge_method": "linear", "modles": models})


def test_a_file_names_itself_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf" + TIES.replace("density", "densty").encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:6:31: models[0].parameters: ties has no parameter")
    assert [str(d) for d in check_recipe(str(path))] == str(caught.value).splitlines()


def test_tokenizer_and_chat_template_are_kept() -> None:
    assert load_recipe(TIES + "tokenizer_source: base\n").output.tokenizer == {"source": "base"}
    assert load_recipe(TIES + "tokenizer: {}\n").output.tokenizer == {"source": "union"}
    stage = load_recipe(TIES + "chat_template: chatml\ntokenizer: {source: a@x}\n").output
    assert (stage.chat_template, stage.tokenizer) == ("chatml", {"source": "a@x"})
    assert load_recipe(TIES + "tokenizer_source: null\n").output.tokenizer is None


def test_a_recipe_survives_pickling() -> None:
    recipe = load_recipe(TIES)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_checking_a_recipe_loads_no_heavy_library() -> None:
    code = (
        "import sys; from mergewise.recipe import check_recipe\n"
        "assert not check_recipe(sys.argv[1])\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, TIES], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
