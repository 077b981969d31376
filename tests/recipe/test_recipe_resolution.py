"""Which value a parameter has for which tensor, and where it came from."""

from __future__ import annotations

from typing import Any

import pytest

from mergewise.errors import RecipeError
from mergewise.methods import get_method
from mergewise.recipe import load_recipe, settings_for


def values(
    text: str, t: float = 0.0, output: str = "out", inputs: list[str | None] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    stage = load_recipe(text, lenient=True).output
    module = stage.modules[0]
    slice_ = module.slices[0]
    names = inputs or [output] * len(slice_.sources)
    return settings_for(stage, get_method(stage.method), module, slice_, t, output, names)


def slerp(t: str) -> str:
    return f"merge_method: slerp\nbase_model: a\nmodels: [{{model: b}}]\nparameters:\n  t: {t}\n"


@pytest.mark.parametrize(
    ("written", "t", "wanted"),
    [
        ("0.3", 0.7, 0.3),
        ("[0.4]", 0.7, 0.4),
        ("[0, 1]", 0.0, 0.0),
        ("[0, 1]", 1.0, 1.0),
        ("[0, 0.5, 0.3, 0.7, 1]", 0.25, 0.5),
        ("[0, 0.5, 0.3, 0.7, 1]", 0.375, 0.4),
        ("[0, 0.5, 0.3, 0.7, 1]", 0.8, 0.76),
        ("[1, 0.7, 0.1]", 0.5, 0.7),
    ],
)
def test_gradients(written: str, t: float, wanted: float) -> None:
    found, _ = values(slerp(written), t)
    assert found["t"] == pytest.approx(wanted, abs=1e-12)


def test_switches_are_picked_not_interpolated() -> None:
    text = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1, normalize: %s}\n"
    for written in ("[true, false, true]", "[1, 0, 1.0]"):
        got = [values(text % written, t)[0]["normalize"] for t in (0, 0.49, 0.5, 0.99, 1)]
        assert got == [True, True, False, False, True]


def test_whole_numbers_are_rounded() -> None:
    text = "merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: [1, 10]}\n"
    found, _ = values(text, 0.5)
    assert found["max_iter"] in (5, 6)
    assert type(found["max_iter"]) is int


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("x.self_attn.q", 0.5), ("x.mlp.up", 0.25), ("x.norm", 0.9), ("self_attn.mlp", 0.5)],
)
def test_the_first_matching_filter_wins(name: str, wanted: float) -> None:
    text = slerp(
        "[{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.25}, "
        "{filter: '*', value: 0.9}]"
    )
    assert values(text, 0.5, name)[0]["t"] == wanted


def test_a_single_condition_is_a_list_of_one() -> None:
    text = slerp("{filter: mlp, value: 0.25}")
    assert values(text, 0, "mlp")[0]["t"] == 0.25
    with pytest.raises(RecipeError, match="slerp needs `t` for tensor norm"):
        values(text, 0, "norm")


LEVELS = """
merge_method: ties
base_model: base
modules:
  text:
    parameters: {weight: 3, density: 0.3}
    slices:
      - parameters: {weight: {filter: mlp, value: 2}, normalize: false}
        sources:
          - model: a
            layer_range: [0, 4]
            parameters: {weight: {filter: q_proj, value: 1}, normalize: true}
          - {model: base, layer_range: [0, 4], parameters: {weight: 9}}
          - {model: b, layer_range: [4, 8]}
parameters: {weight: 4, density: 0.4, lambda: 0.5}
"""


def test_precedence_and_falling_through() -> None:
    found, origins = values(LEVELS, 0, "q_proj")
    assert found["weight"] == [1.0, 3.0]
    assert found["density"] == [0.3, 0.3]
    assert (found["normalize"], found["lambda"], found["rescale"]) == (False, 0.5, False)
    assert origins["rescale"] == "default of ties"
    assert origins["lambda"] == "<recipe>:15:47 parameters.lambda"
    assert values(LEVELS, 0, "mlp")[0]["weight"] == [2.0, 2.0]
    assert values(LEVELS, 0, "norm")[0]["weight"] == [3.0, 3.0]


def test_origins_say_place_path_filter_and_gradient() -> None:
    text = """merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight: 1
      density:
        - filter: mlp
          value: [1, 0.7, 0.1]
        - value: 0.2
"""
    _, origins = values(text, 0.5, "x.mlp")
    assert origins["density"] == [
        "<recipe>:9:18 models[0].parameters.density, filter 'mlp', gradient [1, 0.7, 0.1] at t=0.50"
    ]
    assert origins["weight"] == ["<recipe>:6:15 models[0].parameters.weight"]


def test_per_model_filters_look_at_the_input_name() -> None:
    text = """
merge_method: linear
models: [{model: a}, {model: b}]
parameters:
  weight: [{filter: layers.7., value: 7}, {value: 1}]
  normalize: [{filter: layers.0., value: false}, {value: true}]
"""
    found, _ = values(text, 0, "layers.0.x", ["layers.0.x", "layers.7.x"])
    assert found["weight"] == [1.0, 7.0]
    assert found["normalize"] is False


def test_models_without_the_tensor_are_left_out() -> None:
    text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 2}\n"
    assert values(text, 0, "x", ["x", None])[0]["weight"] == [2.0]


def test_the_base_is_an_expert_where_bases_are_ignored() -> None:
    text = """
merge_method: linear
base_model: b
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]
"""
    assert values(text)[0]["weight"] == [1.0, 2.0]


def test_values_have_the_declared_type() -> None:
    text = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1, normalize: 0.0}\n"
    found, _ = values(text)
    assert type(found["weight"][0]) is float
    assert found["normalize"] is False


def test_a_lenient_recipe_that_lacks_a_parameter_is_refused_when_run() -> None:
    with pytest.raises(RecipeError, match="linear needs `weight` for tensor x of a"):
        values("merge_method: linear\nmodels: [{model: a}]\n", 0, "x")
