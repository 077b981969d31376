"""What a plan says of evidence that ranks elements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from score_evidence import write_means
from small_models import family, load, recipe

from mergewise import plan
from mergewise.cli import cli
from mergewise.errors import RecipeError


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    """Models, and the evidence of two matrices each."""
    root = family(tmp_path_factory.mktemp("models"))
    for letter in "ab":
        state = {n: t for n, t in load(root / f"expert_{letter}").items() if "layers.0.mlp" in n}
        fisher = {n: torch.ones(t.shape) for n, t in state.items()}
        inputs = {n: torch.ones(t.shape[1]) for n, t in state.items()}
        inputs["model.norm.weight"] = torch.ones(16)
        write_means(root / f"{letter}.evd", {"fisher": fisher, "input_moments": inputs})
    return root


def document(root: Path, method: str, evidence: str = "ab", **parameters: Any) -> dict[str, Any]:
    made = recipe(root, method, parameters=parameters)
    for model, letter in zip(made["models"], "ab", strict=True):
        if letter in evidence:
            model["evidence"] = str(root / f"{letter}.evd")
    return made


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties", "della"])
def test_missing_evidence_names_the_score(method: str, root: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(document(root, method, "a", score="gain"))
    text = str(caught.value)
    assert f"expert_b: {method} with `score: gain` reads fisher of every model" in text
    assert "it has no `evidence`" in text and "mergewise collect fisher" in text
    assert "expert_a:" not in text and "\n" not in text


def test_the_wrong_statistic_is_named(root: Path, tmp_path: Path) -> None:
    made = document(root, "ties", score="activation")
    fisher = {"model.layers.0.mlp.up_proj.weight": torch.ones(24, 16)}
    for model in made["models"]:
        model["evidence"] = str(write_means(tmp_path / "fisher.evd", {"fisher": fisher}))
    with pytest.raises(RecipeError, match=r"reads input_moments of every.*its evidence has fisher"):
        plan(made)


def test_magnitude_reads_no_evidence(root: Path) -> None:
    tensors = plan(document(root, "ties")).output.tensors
    assert all(t.statistics == () and not t.reason for t in tensors.values())


@pytest.mark.parametrize("score", ["activation", "gain"])
def test_what_is_ranked_by_magnitude_is_said(score: str, root: Path) -> None:
    tensors = plan(document(root, "ties", score=score)).output.tensors
    for name, tensor in tensors.items():
        described = "layers.0.mlp" in name
        assert bool(tensor.statistics) == described
        told = "no evidence describes it: ranked by magnitude"
        assert tensor.reason == ("" if described else told)


def test_a_score_for_some_tensors_needs_evidence_of_these(root: Path) -> None:
    by_part = [{"filter": "layers.0.mlp", "value": "fisher"}, {"value": "magnitude"}]
    tensors = plan(document(root, "ties", score=by_part)).output.tensors
    assert not any(t.reason for t in tensors.values())
    assert {n for n, t in tensors.items() if t.statistics} == {
        n for n in tensors if "layers.0.mlp" in n
    }


def test_evidence_of_another_shape_is_refused(root: Path, tmp_path: Path) -> None:
    made = document(root, "ties", score="activation")
    wrong = {"model.layers.0.mlp.up_proj.weight": torch.ones(7)}
    for model in made["models"]:
        model["evidence"] = str(write_means(tmp_path / "wrong.evd", {"input_moments": wrong}))
    with pytest.raises(RecipeError, match=r"input_moments of .* has shape \[7\], expected \[16\]"):
        plan(made)


def test_pages_say_so(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(document(root, "ties", score="fisher")))
    page = CliRunner().invoke(cli, ["plan", str(file)]).stdout
    assert "Merged otherwise" in page and "ranked by magnitude" in page
    explain = ["plan", str(file), "--explain", "model.norm.weight"]
    page = CliRunner().invoke(cli, explain).stdout
    assert "no evidence describes it: ranked by magnitude" in page


def test_evidence_without_effect_is_told(tmp_path: Path) -> None:
    root = family(tmp_path / "models")
    given = recipe(root, "fisher")["models"]
    document = recipe(root, "ties", parameters={"density": 0.5})
    for source, known in zip(document["models"], given, strict=True):
        source["evidence"] = known["evidence"]
    [warning] = plan(document).warnings
    assert "expert_a, " in warning and "has no effect: ties reads none" in warning
    document["parameters"]["score"] = "fisher"
    assert not [w for w in plan(document).warnings if "no effect" in w]
