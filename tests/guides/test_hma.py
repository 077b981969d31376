"""Ratios of groups of layers at a given mean."""

import _line
import pytest
import torch
from safetensors.torch import load_file

from mergewise.engine import merge
from mergewise.errors import GuideError
from mergewise.guides import guide
from mergewise.guides.hma import Hma, _grid
from mergewise.methods import Settings

NEAR = """
import torch

def near(model, records, split):
    wanted = {0: 1.0, 1: 0.25, 2: 0.25}
    lost = 0.0
    for i, layer in enumerate(model.module.model.layers):
        lost += float((layer.mlp.up_proj.weight.detach().double() - wanted[i]).square().mean())
    return {"score": -lost}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models whose layers hold zeros, and ones."""
    root = tmp_path_factory.mktemp("hma")
    (root / "near_of_a_test.py").write_text(NEAR)
    for name, value in (("old", 0.0), ("new", 1.0)):
        module = _line.target()
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(value)
        module.save_pretrained(root / name)
    _line.quick()
    return root


def found(models, names=("old", "new"), method="linear", parts=None, **settings):
    tasks = _line.tasks(function="near_of_a_test:near", path=str(models))
    recipe = _line.soup(models, names, method, **(parts or {}))
    return guide(recipe, "hma", tasks=tasks, **settings)


def check(made, folder, wanted):
    """The merge has the wanted ratio everywhere; `wanted` by a part of names."""
    merge(made.recipe, folder)
    for name, value in load_file(folder / "model.safetensors").items():
        assert value.eq(next(w for part, w in wanted.items() if part in name)).all(), name


def test_the_wanted_ratios_are_found_between_two_models(models, tmp_path):
    made = found(models, groups=2)
    check(made, tmp_path / "out", {
        "embed_tokens": 0.75, "layers.0.": 0.75, "layers.1.": 0.75, "layers.2.": 0.25, "": 0.5,
    })  # fmt: skip
    assert any(note.startswith("chosen ratios 0.75, 0.25: near") for note in made.notes)
    assert "7 scorings of models and merges on near (validation split)" in made.notes


def test_the_wanted_ratios_are_found_between_base_and_expert(models, tmp_path):
    parts = {"base_model": str(models / "old")}
    made = found(models, ("new",), "task_arithmetic", parts, step=0.5)
    check(made, tmp_path / "out", {
        "embed_tokens": 1.0, "layers.0.": 1.0, "layers.1.": 0.0, "layers.2.": 0.5, "": 0.5,
    })  # fmt: skip


def test_the_grid_holds_the_mean_and_begins_with_the_even_one():
    for budget, groups, step in ((0.5, 3, 0.25), (0.3, 2, 0.1), (0.8, 4, 0.2)):
        grid = _grid(Settings({"budget": budget, "groups": groups, "step": step}))
        assert grid[0] == (budget,) * groups and len(set(grid)) == len(grid) > 1
        for ratios in grid:
            assert sum(ratios) / groups == pytest.approx(budget)
            assert all(0 <= ratio <= 1 for ratio in ratios)


def test_what_cannot_be_done(models):
    with pytest.raises(GuideError, match=r"8 groups in steps of 0.01 make too many merges"):
        found(models, groups=8, step=0.01)
    with pytest.raises(GuideError, match=r"make 85 merges, and most is 64"):
        found(models, groups=4)
    with pytest.raises(GuideError, match=r"4 groups of 3 layers cannot be made"):
        found(models, groups=4, most=100)
    assert "budget" in Hma.describe()
