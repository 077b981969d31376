"""Every mistake is reported at its place, with what was expected, and all at once."""

from __future__ import annotations

import pytest

from mergewise.errors import RecipeError
from mergewise.recipe import check_recipe, load_recipe

HEAD = "merge_method: ties\nbase_model: base\n"
MODELS = "models:\n  - model: a\n    parameters: {weight: 1}\n"
LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
SLICES = "merge_method: passthrough\nslices:\n  - sources:\n      - model: a\n"
STAGE = "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\n"

ERRORS = {
    "top key": (LINEAR + "dtpye: float32\n", "5:1: unknown key `dtpye`; did you mean `dtype`?"),
    "model key": (
        LINEAR.replace("parameters", "paramters"),
        "4:5: models[0]: unknown key `paramters`; did you mean `parameters`?",
    ),
    "parameter beside model": (
        "merge_method: linear\nmodels:\n  - model: a\n    weight: 1\n",
        "4:5: models[0]: unknown key `weight`; it is a parameter: put it under `parameters:`",
    ),
    "misspelled parameter beside model": (
        "merge_method: linear\nmodels:\n  - model: a\n    wieght: 1\n",
        "unknown key `wieght`; did you mean `weight`? It is a parameter: put it under",
    ),
    "parameter at the top": (LINEAR + "normalize: true\n", "5:1: unknown key `normalize`; it is a"),
    "layer_range in models": (
        LINEAR + "    layer_range: [0, 2]\n",
        "5:5: models[0]: unknown key `layer_range`; it belongs to a source",
    ),
    "method": (
        "merge_method: dare-ties\nmodels: []\n",
        "1:15: unknown merge method 'dare-ties'; did you mean `dare_ties`?",
    ),
    "method in capitals": (
        "merge_method: TIES\nmodels: []\n",
        "1:15: unknown merge method 'TIES'; did you mean `ties`?",
    ),
    "no method": ("models: []\n", "1:1: `merge_method` is missing"),
    "method of wrong type": ("merge_method: [a]\nmodels: []\n", "1:15: merge_method: a name"),
    "parameter name": (
        LINEAR.replace("{weight: 1}", "{weigth: 1}"),
        "4:18: models[0].parameters: linear has no parameter `weigth`; did you mean `weight`?",
    ),
    "range": (
        HEAD + MODELS.replace("weight: 1", "weight: 1, density: 1.5"),
        "5:38: models[0].parameters.density: 0 <= x <= 1 expected, got 1.5",
    ),
    "range in a gradient": (
        HEAD + MODELS.replace("weight: 1", "weight: 1, density: [0, 2]"),
        "5:42: models[0].parameters.density: 0 <= x <= 1 expected, got 2",
    ),
    "range in a filter": (
        HEAD + MODELS.replace("1}", "1, density: [{filter: mlp, value: -1}, {value: 1}]}"),
        "5:60: models[0].parameters.density: 0 <= x <= 1 expected, got -1",
    ),
    "quoted number": (
        LINEAR.replace("weight: 1", "weight: '0.5'"),
        "float expected, got '0.5'; remove the quotes",
    ),
    "empty gradient": (LINEAR.replace(": 1}", ": []}"), "4:26: models[0].parameters.weight: a num"),
    "empty parameter": (LINEAR.replace(": 1}", ": }"), "got nothing"),
    "nested gradient": (LINEAR.replace(": 1}", ": [1, [2]]}"), "4:30: models[0].parameters.weight"),
    "filter without value": (
        LINEAR.replace(": 1}", ": {filter: mlp}}"),
        "a number, a list, or {filter, value} expected, got a mapping of filter",
    ),
    "mixed conditions": (
        LINEAR.replace(": 1}", ": [{filter: a, value: 1}, 2]}"),
        "{filter, value} expected, got a number",
    ),
    "parameters of wrong type": (LINEAR + "parameters: 3\n", "5:13: parameters: a mapping expec"),
    "weight missing": (
        "merge_method: linear\nmodels:\n  - model: a\n",
        "3:12: linear needs `weight` for a: add",
    ),
    "t missing": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\n",
        "1:15: slerp needs `t`",
    ),
    "implicit base of linear": (
        LINEAR + "base_model: base\n",
        "5:13: linear needs `weight` for base: linear treats base_model like any other model",
    ),
    "no base": (
        "merge_method: ties\n" + MODELS,
        "1:15: ties needs `base_model`, and there is none",
    ),
    "three models for slerp": (
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\n"
        "models: [{model: a}, {model: b}, {model: c}]\n",
        "4:9: slerp takes exactly 1 model besides the base, got 2",
    ),
    "base of passthrough": (
        SLICES + "        layer_range: [0, 2]\nbase_model: b\n",
        "6:13: passthrough takes exactly 1 model, got 2; base_model b is not one of them, and is "
        "added as a source: remove it",
    ),
    "one model for model_stock": (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: a}, {model: b}]\n",
        "model_stock takes at least 2 models besides the base, got 1",
    ),
    "model twice": (
        LINEAR + "  - model: a\n    parameters: {weight: 2}\n",
        "5:12: a is here twice; the first is on line 3",
    ),
    "key twice": (
        LINEAR + "models: []\n",
        "5:1: key `models` is here twice; the first is on line 2",
    ),
    "no models": (
        "merge_method: linear\n",
        "1:1: one of `models`, `slices` and `modules` expected",
    ),
    "models and slices": (LINEAR + "slices: []\n", "5:1: exactly one of models, slices, modules"),
    "empty models": (
        "merge_method: linear\nmodels: []\n",
        "2:9: models: a list expected, got an e",
    ),
    "models as text": (
        "merge_method: linear\nmodels: a\n",
        "2:9: models: a list expected, got text",
    ),
    "model as text": (
        "merge_method: linear\nmodels: [a]\n",
        "2:10: models[0]: a mapping with `model` expected, got text; write `- model: a`",
    ),
    "model missing": (
        "merge_method: linear\nmodels: [{parameters: {weight: 1}}]\n",
        "`model` is m",
    ),
    "model as number": (LINEAR.replace("model: a", "model: 7"), "got a number; put it in quotes"),
    "two revisions": (
        LINEAR.replace("model: a", "model: a@b@c"),
        "3:12: models[0].model: bad model",
    ),
    "two adapters": (LINEAR.replace("model: a", "model: a+b+c"), "at most one `+lora`"),
    "empty revision": (LINEAR.replace("model: a", "model: a@"), "bad model reference 'a@'"),
    "reference key": (
        LINEAR.replace("model: a", "model: {path: a, revison: b}"),
        "unknown key `revison`; did you mean `revision`?",
    ),
    "slice without range": (SLICES, "4:9: slices[0].sources[0]: `layer_range: [from, to]` is miss"),
    "range backwards": (
        SLICES + "        layer_range: [4, 2]\n",
        "5:22: slices[0].sources[0].layer_range: 0 <= from < to expected, got [4, 2]",
    ),
    "range of three": (SLICES + "        layer_range: [0, 1, 2]\n", "expected, got a list of 3"),
    "range of floats": (SLICES + "        layer_range: [0, 2.5]\n", "expected, got [0, 2.5]"),
    "octal range": (SLICES + "        layer_range: [0, 010]\n", "expected, got [0, 010]"),
    "unequal lengths": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
        "    - {model: a, layer_range: [0, 4]}\n    - {model: b, layer_range: [0, 3]}\n",
        "6:15: slices[0]: all sources of a slice must have equally many layers; b has 3",
    ),
    "dtype": (
        LINEAR + "dtype: bfloat61\n",
        "5:8: dtype: one of bfloat16, float16, float32, float64",
    ),
    "dtype alias": (LINEAR + "dtype: fp16\n", "got fp16; did you mean `float16`?"),
    "dtype int64": (
        LINEAR + "out_dtype: int64\n",
        "out_dtype: one of bfloat16, float16, float32, "
        "float64 expected, got int64: weights are not merged as integers",
    ),
    "both tokenizers": (
        LINEAR + "tokenizer_source: base\ntokenizer: {source: base}\n",
        "6:1: `tokenizer` and `tokenizer_source` exclude each other",
    ),
    "tokenizer as text": (LINEAR + "tokenizer: union\n", "5:12: tokenizer: a mapping such as"),
    "tokenizer key": (
        LINEAR + "tokenizer: {sauce: base}\n",
        "unknown key `sauce`; did you mean `sou",
    ),
    "token kind": (
        LINEAR + "tokenizer: {tokens: {x: {source: {kind: zer}}}}\n",
        "5:41: tokenizer.tokens.x.source.kind: model_token or zero expected; did you mean `zero`?",
    ),
    "token and id": (
        LINEAR + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
        "one of `token` and `token_id` expected",
    ),
    "padding": (LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n", "a whole number from 1 expected"),
    "chat template": (LINEAR + "chat_template: chatlm\n", "5:16: chat_template: auto, alpaca"),
    "seed": (LINEAR + "seed: -1\n", "5:7: seed: a whole number from 0"),
    "seed as switch": (LINEAR + "seed: yes\n", "5:7: seed: a whole number from 0"),
    "missing": (LINEAR + "missing: skip\n", "missing: one of error, available, copy expected"),
    "exclude without base": (LINEAR + "exclude: ['x']\n", "5:10: exclude keeps the base's values"),
    "exclude of numbers": (HEAD + MODELS + "exclude: [1]\n", "6:11: exclude: a pattern of tensor"),
    "native parameter elsewhere": (
        LINEAR + "parameters: {rescale_by: norm}\n",
        "5:14: parameters: linear has no parameter `rescale_by`",
    ),
    "parameters that do not go together": (
        "merge_method: della\nbase_model: base\nmodels: [{model: a}]\n"
        "parameters: {weight: 1, density: 0.9, epsilon: 0.2}\n",
        "4:13: della: ",
    ),
    "modules as list": (
        "merge_method: linear\nmodules: [a]\n",
        "2:10: modules: a mapping of modules",
    ),
    "module with nothing": (
        "merge_method: linear\nmodules: {text: {}}\n",
        "2:17: modules.text: one of `models` and `slices` expected, got neither",
    ),
    "list as document": (
        "- 1\n",
        "1:1: a recipe (a mapping with `merge_method`) expected, got a list",
    ),
    "empty": ("# nothing\n", "1:1: the document is empty"),
    "stage without name": (STAGE + "---\n" + STAGE, "1:1: document 1 of 2 needs `name:`"),
    "stage names": (
        f"name: a\n{STAGE}---\nname: a\n{STAGE}",
        "5:7: stage 'a' is already document 1; rename one",
    ),
    "stage of itself": (
        f"name: a\n{STAGE}---\nname: b\n{STAGE}".replace("x", "b"),
        "7:18: 'b' is this stage itself",
    ),
    "later stage": (
        f"name: a\n{STAGE}---\nname: b\n{STAGE}".replace("x", "b"),
        "3:18: 'b' is document 2, below; a stage can use only the ones above it",
    ),
    "tab": ("merge_method: linear\nmodels:\n\t- model: a\n", "3:1: YAML syntax: found character"),
    "bracket": ("merge_method: [linear\n", "2:1: YAML syntax"),
    "windows path in double quotes": (
        LINEAR.replace("model: a", 'model: "C:\\models"'),
        "a backslash is special: use 'single quotes'",
    ),
    "python tag": (
        "merge_method: !!python/name:os.system\nmodels: []\n",
        "1:15: tag `!!python/name:os.system` is refused",
    ),
}

WARNINGS = {
    "parameter of other methods": (
        LINEAR + "parameters: {density: 0.5}\n",
        "5:14: warning: parameters.density has no effect on linear",
    ),
    "parameter of another name": (
        "merge_method: multislerp\nmodels: [{model: a}]\n"
        "parameters: {weight: 1, normalize: true}\n",
        "parameters.normalize has no effect on multislerp; did you mean `normalize_weights`?",
    ),
    "shared parameter under a model": (
        LINEAR.replace("weight: 1", "weight: 1, normalize: false"),
        "4:29: warning: models[0].parameters.normalize has no effect: linear has one `normalize`",
    ),
    "parameters of the base": (
        HEAD + MODELS + "  - model: base\n    parameters: {weight: 3}\n",
        "7:26: warning: models[1].parameters.weight has no effect: base is the base model of ties",
    ),
    "unreachable condition": (
        LINEAR.replace(": 1}", ": [{value: 1}, {filter: mlp, value: 2}]}"),
        "never reached, because the entry before it matches every tensor",
    ),
    "residual weight": (
        SLICES + "        layer_range: [0, 2]\n    residual_weight: 1\n",
        "6:5: warning: slices[0].residual_weight has never had an effect",
    ),
    "unused stage": (
        f"name: first\n{STAGE}---\n" + STAGE.replace("x", "./out/first"),
        "1:7: warning: stage 'first' is not used by a later one; `./out/first` is a folder",
    ),
}


@pytest.mark.parametrize(("text", "wanted"), ERRORS.values(), ids=ERRORS.keys())
def test_error(text: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(text)
    assert wanted in str(caught.value).replace("<recipe>:", "")


@pytest.mark.parametrize(("text", "wanted"), WARNINGS.values(), ids=WARNINGS.keys())
def test_warning(text: str, wanted: str) -> None:
    found = check_recipe(text)
    assert [d.severity for d in found] == ["warning"]
    assert wanted in str(found[0]).replace("<recipe>:", "")
    load_recipe(text)


def test_all_errors_come_at_once_in_document_order() -> None:
    text = """
merge_method: ties
dtype: q4_k_m
models:
  - model: a
    weight: 1
  - model: b
    parameters: {densty: 1, weight: x}
seed: no
"""
    found = check_recipe(text)
    assert [(d.line, d.column) for d in found] == [
        (2, 15), (3, 8), (6, 5), (8, 18), (8, 37), (9, 7),
    ]  # fmt: skip


def test_lenient_forgives_unknown_keys_and_nothing_else() -> None:
    unknown = LINEAR + "out_path: x\nparameters: {geodesic: true}\n"
    assert {d.severity for d in check_recipe(unknown, lenient=True)} == {"warning"}
    load_recipe(unknown, lenient=True)
    with pytest.raises(RecipeError):
        load_recipe(unknown)
    for text in (LINEAR + "parameters: {geodesic: text}\n", LINEAR + "dtype: q4\n"):
        with pytest.raises(RecipeError):
            load_recipe(text, lenient=True)


def test_a_missing_parameter_is_found_again_at_each_slice() -> None:
    text = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 1], parameters: {weight: 1}}]
  - sources: [{model: a, layer_range: [1, 2]}]
"""
    [only] = check_recipe(text)
    assert (only.line, only.column) == (5, 23)
