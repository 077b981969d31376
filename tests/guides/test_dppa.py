"""DPPA: densities from outliers of task vectors, and amplification of the largest changes."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mergewise
from mergewise.errors import GuideError, NonFiniteError
from mergewise.guides import guide


def model(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture
def changes():
    """A tenth of the changes of layer 0 are outliers, none of layer 1's."""
    first = torch.tensor([91.0, 1.9, 1.8, 1.7, 1.6, 0.6, 0.5, 0.4, 0.3, 0.2]).view(2, 5)
    second = torch.arange(10, 0, -1).div(4).view(2, 5)
    return {"h.0.w": first, "h.1.w": second, "norm": torch.ones(3)}


@pytest.fixture
def recipe(tmp_path, changes):
    base = model(tmp_path / "base", {n: torch.zeros_like(c) for n, c in changes.items()})
    expert = model(tmp_path / "a", changes)
    return {
        "merge_method": "breadcrumbs",
        "base_model": base,
        "models": [{"model": expert, "parameters": {"weight": 0.5, "density": 1.0}}],
        "parameters": {"gamma": 0.0},
    }


def merged(made, tmp_path):
    mergewise.merge(made.recipe, tmp_path / "out", overwrite=True)
    return load_file(tmp_path / "out/model.safetensors")


def top(change, count):
    """The largest `count` of a tensor, the rest zero."""
    least = change.abs().flatten().sort(descending=True).values[count - 1]
    return torch.where(change.abs() >= least, change, torch.zeros_like(change))


def test_densities_follow_the_share_of_outliers(recipe, changes, tmp_path):
    made = guide(recipe, "dppa", density=0.4, range=0.2)
    outliers, densities = made.maps
    assert outliers.values == {"h.0": {"w": 0.1}, "h.1": {"w": 0.0}}
    assert densities.values["h.0"]["w"] == pytest.approx(0.6)
    assert densities.values["h.1"]["w"] == pytest.approx(0.2)
    result = merged(made, tmp_path)
    torch.testing.assert_close(result["h.0.w"], 0.5 * top(changes["h.0.w"], 6))
    torch.testing.assert_close(result["h.1.w"], 0.5 * top(changes["h.1.w"], 2))
    assert result["norm"].tolist() == [0.5] * 3


def test_what_counts_as_an_outlier_is_a_setting(recipe):
    made = guide(recipe, "dppa", outlier=1.5)
    # the mean of layer 1 is 1.375: 2.5 and 2.25 are above 1.5 times that
    assert made.maps[0].values == {"h.0": {"w": 0.1}, "h.1": {"w": 0.2}}
    assert made.maps[1].values["h.1"]["w"] > made.maps[1].values["h.0"]["w"]


def test_the_mean_is_over_elements(recipe, tmp_path, changes):
    changes["h.1.w"] = torch.ones(30, 1)
    for name, states in (("c", changes), ("d", {n: 0 * c for n, c in changes.items()})):
        model(tmp_path / name, states)
    recipe["models"][0]["model"] = str(tmp_path / "c")
    recipe["base_model"] = str(tmp_path / "d")
    made = guide(recipe, "dppa", density=0.4, range=0.2)
    first, second = (made.maps[1].values[layer]["w"] for layer in ("h.0", "h.1"))
    assert first - second == pytest.approx(0.4)
    assert (10 * first + 30 * second) / 40 == pytest.approx(0.4)


def test_the_largest_changes_are_amplified(recipe, changes, tmp_path):
    made = guide(recipe, "dppa", density=0.4, range=0.2, amplify=3, partition=0.5)
    assert len(list(yaml.safe_load_all(made.text))) == 2
    result = merged(made, tmp_path)
    first = 0.5 * top(changes["h.0.w"], 6) + 0.5 * 2 * top(changes["h.0.w"], 3)
    second = 0.5 * top(changes["h.1.w"], 2) + 0.5 * 2 * top(changes["h.1.w"], 1)
    torch.testing.assert_close(result["h.0.w"], first)
    torch.testing.assert_close(result["h.1.w"], second)
    assert result["norm"].tolist() == [0.5] * 3


def test_two_experts_are_amplified_each_by_itself(recipe, changes, tmp_path):
    other = {name: -2 * change.flip(0) for name, change in changes.items()}
    given = {"weight": 0.25, "density": 1.0}
    recipe["models"].append({"model": model(tmp_path / "b", other), "parameters": given})
    recipe["parameters"]["lambda"] = 2.0
    made = guide(recipe, "dppa", density=0.4, range=0.2, amplify=2)
    first, second = changes["h.0.w"], other["h.0.w"]
    expected = 2 * (
        0.5 * (top(first, 6) + top(first, 3)) + 0.25 * (top(second, 6) + top(second, 3))
    )
    torch.testing.assert_close(merged(made, tmp_path)["h.0.w"], expected)


def test_no_outliers_is_uniform_density(recipe):
    made = guide(recipe, "dppa", density=0.3, outlier=1000.0)
    assert [v["w"] for v in made.maps[1].values.values()] == pytest.approx([0.3, 0.3])


def test_what_cannot_be_done_is_refused(recipe):
    recipe["parameters"] = {}
    recipe["merge_method"] = "task_arithmetic"
    with pytest.raises(GuideError, match="task_arithmetic does not take"):
        guide(recipe, "dppa")
    recipe["merge_method"] = "dare_linear"
    guide(recipe, "dppa")
    with pytest.raises(GuideError, match="amplify: dare_linear is not a sum of the largest"):
        guide(recipe, "dppa", amplify=2)
    recipe["merge_method"], recipe["parameters"] = "breadcrumbs", {"rescale": True}
    with pytest.raises(GuideError, match="set `rescale: false`"):
        guide(recipe, "dppa", amplify=2)


def test_broken_weights_are_named(recipe, tmp_path, changes):
    changes["h.1.w"][0, 0] = float("nan")
    recipe["models"][0]["model"] = model(tmp_path / "bad", changes)
    with pytest.raises(NonFiniteError, match=r"h\.1\.w holds NaN"):
        guide(recipe, "dppa")
