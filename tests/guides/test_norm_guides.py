"""Guides that look at weights alone: numbers by hand, and recipes that merge."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergewise
from mergewise.errors import GuideError, RecipeError
from mergewise.guides import guide
from mergewise.methods import get_method


def model(folder, **tensors):
    folder.mkdir()
    save_file({k: torch.tensor(v) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture
def recipe(tmp_path):
    """Task vectors (3, 4 | 0) and (1, 0 | 2)."""
    base = model(tmp_path / "base", **{"h.0.w": [[1.0, 1.0]], "head": [[5.0]]})
    a = model(tmp_path / "a", **{"h.0.w": [[4.0, 5.0]], "head": [[5.0]]})
    b = model(tmp_path / "b", **{"h.0.w": [[2.0, 1.0]], "head": [[7.0]]})
    return {
        "merge_method": "task_arithmetic", "base_model": base,
        "models": [{"model": m, "parameters": {"weight": 9.0}} for m in (a, b)],
    }  # fmt: skip


def weights(guided, tmp_path):
    mergewise.merge(guided.recipe, tmp_path / "out", overwrite=True)
    return load_file(tmp_path / "out/model.safetensors")


def test_metagpt(recipe, tmp_path):
    made = guide(recipe, "metagpt")
    found = [m["parameters"]["weight"] for m in _models(made)]
    assert found == pytest.approx([25 / 30, 5 / 30])
    assert any("norm 5, weight 0.8333" in note for note in made.notes)
    merged = weights(made, tmp_path)
    torch.testing.assert_close(merged["head"], torch.tensor([[5 + 2 / 6]]))


def test_metagpt_of_one_expert_is_that_expert(recipe, tmp_path):
    del recipe["models"][1]
    merged = weights(guide(recipe, "metagpt"), tmp_path)
    assert merged["h.0.w"].tolist() == [[4.0, 5.0]]


def test_varm_is_the_same_for_every_tensor(recipe, tmp_path):
    made = guide(recipe, "varm")
    merged = weights(made, tmp_path)
    # 25/26 of a and 1/26 of b; the head of b alone
    expected = [1 + 3 * 25 / 26 + 1 / 26, 1 + 4 * 25 / 26]
    assert merged["h.0.w"].tolist()[0] == pytest.approx(expected)
    assert merged["head"].tolist() == [[7.0]]
    assert made.maps[0].values == {"h.0": {"w": pytest.approx(25 / 26)}}


def test_varm_shares_what_nobody_changed(recipe):
    base = recipe["base_model"]
    recipe["models"][0]["model"] = recipe["models"][1]["model"] = base
    with pytest.raises(RecipeError):
        guide(recipe, "varm")  # there is no expert left


@pytest.fixture
def deep(tmp_path):
    tensors = {f"h.{i}.w": [[0.0]] for i in range(3)} | {"head": [[0.0]]}
    ones = {name: [[1.0]] for name in tensors}
    base, a, b = (model(tmp_path / n, **(ones if n in "ab" else tensors)) for n in ("o", "a", "b"))
    return {
        "merge_method": "task_arithmetic", "base_model": base,
        "models": [{"model": m, "parameters": {"weight": 1.0}} for m in (a, b)],
    }  # fmt: skip


def test_lines(deep, tmp_path):
    merged = weights(guide(deep, "lines", beta=0.4), tmp_path)
    found = [merged[name].item() for name in ("h.0.w", "h.1.w", "h.2.w", "head")]
    assert found == pytest.approx([1.0, 1.4, 1.8, 1.0])  # twice: two experts, alpha 1/2
    with pytest.raises(GuideError, match="beta is required"):
        guide(deep, "lines")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [0.2, 0.6, 1.0]), ("step", [0.2, 1.0, 1.0]), ("cosine", [0.2, 0.6, 1.0])],
)
def test_layer_schedule(deep, tmp_path, shape, expected):
    made = guide(deep, "layer_schedule", points="0.2,1", shape=shape)
    merged = weights(made, tmp_path)
    found = [merged[f"h.{i}.w"].item() / 2 for i in range(3)]
    assert found == pytest.approx(expected)
    assert merged["head"].item() / 2 == pytest.approx(0.6)


def test_a_cosine_is_level_at_its_points():
    from mergewise.guides._layers import curve_through

    curve = curve_through([0.0, 1.0], "cosine")
    assert curve(0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert curve_through([0.3], "linear")(0.7) == 0.3
    assert curve_through([0.0, 1.0, 0.0], "linear")(0.75) == pytest.approx(0.5)


def test_what_cannot_be_written_is_refused(deep):
    with pytest.raises(GuideError, match="numbers with commas"):
        guide(deep, "layer_schedule", points="low to high")
    with pytest.raises(GuideError, match="task_arithmetic does not take"):
        guide(deep, "layer_schedule", points="0,1", parameter="density")
    deep["merge_method"] = "model_stock"
    for one in deep["models"]:
        del one["parameters"]
    with pytest.raises(GuideError, match="writes weight for every expert"):
        guide(deep, "metagpt")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lines", {"beta": 1.0}), ("layer_schedule", {"points": "0.2,1"})],
)
def test_weights_that_all_share_are_not_divided_by_their_sum(deep, name, settings):
    deep["merge_method"] = "ties"
    with pytest.raises(GuideError, match="have no effect; write `normalize: false`"):
        guide(deep, name, **settings)
    deep["parameters"] = {"normalize": False}
    guide(deep, name, **settings)


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("multislerp", "`normalize_weights` divides .* write `normalize_weights: false`"),
        ("geometric_median", "`geometric_median` divides .* start from another method"),
        ("knots", "`rule` divides .* choose another `rule`"),
    ],
)
def test_neither_where_a_method_has_another_word_for_it(deep, method, way):
    deep["merge_method"] = method
    with pytest.raises(GuideError, match=way):
        guide(deep, "lines", beta=1.0)


def test_densities_do_not_care_for_normalize(deep, tmp_path):
    deep["merge_method"] = "ties"
    made = guide(deep, "layer_schedule", points="0.2,1", parameter="density")
    assert "normalize" not in made.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"points": "0.2,1.5"}, "points: density of ties: 0 <= x <= 1 expected, got 1.5"),
        ({"points": "0.2,nan"}, "points: density of ties: a finite number expected"),
        ({"points": "0.2", "other": -1.0}, "other: density of ties: 0 <= x <= 1 expected"),
    ],
)
def test_points_that_the_method_refuses(deep, settings, words):
    deep["merge_method"] = "ties"
    with pytest.raises(GuideError, match=words):
        guide(deep, "layer_schedule", parameter="density", **settings)


@pytest.mark.parametrize(
    ("name", "settings"), [("metagpt", {}), ("varm", {}), ("lines", {"beta": 1.0})]
)
def test_weights_of_task_vectors_need_a_method_with_a_base(deep, name, settings):
    deep["merge_method"] = "linear"
    deep["models"].append({"model": deep["base_model"], "parameters": {"weight": 1.0}})
    with pytest.raises(GuideError, match="linear knows no base; start from task_arithmetic"):
        guide(deep, name, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("metagpt", {}), ("varm", {}), ("lines", {"beta": 1.0}), ("apl", {}), ("mwa", {})],
)
def test_weights_of_single_tensors_are_not_overwritten(deep, name, settings):
    deep["merge_method"] = "ties"
    deep["models"][0]["parameters"]["weight"] = [{"filter": "head", "value": 0.2}, {"value": 0.4}]
    with pytest.raises(RecipeError, match=f"differs between tensors already, and {name} would"):
        guide(deep, name, **settings)


def test_settings_that_are_not_there_or_of_another_type(deep):
    with pytest.raises(GuideError, match="no setting 'beta'; it has none"):
        guide(deep, "metagpt", beta=1.0)
    with pytest.raises(GuideError, match=r"str expected, got \[0.2, 1\] \(numbers from the first"):
        guide(deep, "layer_schedule", points=[0.2, 1])


def test_no_settings_are_no_comment(deep):
    assert "Settings" not in guide(deep, "metagpt").text
    assert "# Settings: beta 1.0" in guide(deep, "lines", beta=1.0).text


def _models(made):
    import yaml

    return yaml.safe_load(made.text)["models"]


@pytest.mark.parametrize("method", ["ties", "iso_c", "knots", "pcb", "magmax", "emr", "lota"])
def test_lines_of_what_any_method_merged(deep, method, tmp_path):
    deep["merge_method"] = method
    plain = load_file(_merged(deep, tmp_path / "plain"))
    deep["parameters"] = {"lambda": 7.0}
    made = guide(deep, "lines", alpha=0.5, beta=1.0, parameter="lambda")
    scale = get_method(method).params["lambda"].default
    merged = weights(made, tmp_path)
    for i, wanted in enumerate((0.5, 1.0, 1.5)):
        torch.testing.assert_close(merged[f"h.{i}.w"] * scale, plain[f"h.{i}.w"] * wanted)
    torch.testing.assert_close(merged["head"] * scale, plain["head"] * 0.5)
    assert any("lambda 7.0 is replaced" in note for note in made.notes)
    curved = guide(deep, "layer_schedule", points="0.5,1.5", parameter="lambda", other=0.5)
    assert _models(curved) == _models(made) == deep["models"]
    assert torch.equal(weights(curved, tmp_path)["h.2.w"], merged["h.2.w"])


def test_lines_of_lambda_are_asked_for_clearly(deep):
    with pytest.raises(GuideError, match="say alpha"):
        guide(deep, "lines", beta=1.0, parameter="lambda")
    deep["merge_method"] = "ties"
    with pytest.raises(GuideError, match="parameter=lambda"):
        guide(deep, "lines", beta=1.0)
    deep["merge_method"] = "geometric_median"
    with pytest.raises(GuideError, match="it writes lambda, which geometric_median does not take"):
        guide(deep, "lines", beta=1.0, alpha=1.0, parameter="lambda")


def _merged(document, out):
    mergewise.merge(document, out)
    return out / "model.safetensors"
