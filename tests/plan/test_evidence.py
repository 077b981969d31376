"""Evidence files in a recipe: found, checked against the tensors, refused at the model's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import write_means
from small_models import family, load, recipe, save

from mergewise import merge, plan
from mergewise.errors import RecipeError
from mergewise.methods import get_method


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return family(tmp_path)


def problems(document: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(document)
    return str(caught.value)


def test_only_tensors_that_the_evidence_describes_get_it(folders: Path) -> None:
    found = plan(recipe(folders, "regmean")).output.tensors
    assert len(found["model.layers.0.self_attn.q_proj.weight"].statistics[0]) == 2
    assert found["model.norm.weight"].statistics == ()


def test_a_model_without_evidence_is_refused_at_its_line(folders: Path) -> None:
    document = recipe(folders, "fisher")
    del document["models"][1]["evidence"]
    text = problems(document)
    assert "expert_b: fisher reads fisher of every model, and it has no `evidence`" in text
    assert "mergewise collect fisher" in text
    assert text.count("\n") == 0


def test_the_wrong_statistic_is_named(folders: Path) -> None:
    document = recipe(folders, "fisher")
    document["merge_method"] = "regmean"
    assert "reads input_gram of every model, and its evidence has fisher" in problems(document)


def test_evidence_of_another_architecture_is_refused(folders: Path) -> None:
    document = recipe(folders, "fisher")
    other = {"some.other.weight": torch.ones(2, 2)}
    for model in document["models"]:
        Path(model["evidence"]).unlink()
        write_means(Path(model["evidence"]), get_method("fisher"), {"fisher": other})
    assert "describes none of the" in problems(document)


def test_evidence_of_another_shape_is_refused(folders: Path) -> None:
    document = recipe(folders, "regmean")
    name = "model.layers.0.self_attn.q_proj.weight"
    for model in document["models"]:
        Path(model["evidence"]).unlink()
        write_means(
            Path(model["evidence"]), get_method("regmean"), {"input_gram": {name: torch.eye(7)}}
        )
    assert "shape [7, 7], expected [16, 16]" in problems(document)


@pytest.mark.parametrize("value", [3, ["a", 2], {"x": "y"}])
def test_evidence_is_a_path_or_paths(folders: Path, value: Any) -> None:
    document = recipe(folders, "fisher")
    document["models"][0]["evidence"] = value
    assert "the path of a file that `mergewise collect` wrote expected" in problems(document)


def test_absent_files_are_refused(folders: Path) -> None:
    document = recipe(folders, "fisher")
    document["models"][0]["evidence"] = "nowhere.safetensors"
    assert "nowhere.safetensors: no such file" in problems(document)


def test_provenance_names_the_evidence(folders: Path, tmp_path: Path) -> None:
    merge(recipe(folders, "fisher"), tmp_path / "out")
    text = (tmp_path / "out/mergewise_provenance.json").read_text()
    assert "expert_a.fisher.safetensors" in text


def test_another_evidence_is_another_merge(folders: Path) -> None:
    document = recipe(folders, "fisher")
    before = plan(document).digest()
    file = Path(document["models"][0]["evidence"])
    file.unlink()
    write_means(file, get_method("fisher"), {"fisher": {"model.norm.weight": torch.ones(16)}})
    assert plan(document).digest() != before


def test_weights_stored_transposed_are_solved_over_their_inputs(tmp_path: Path) -> None:
    """GPT-2's Conv1D keeps [inputs, outputs]; the Gram matrix's side tells."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 3, generator=draw) for _ in range(2)]
    rows = [torch.randn(20, 5, generator=draw) for _ in range(2)]
    models = []
    for i in range(2):
        save(tmp_path / str(i), {"h.weight": weights[i]})
        gram = {"input_gram": {"h.weight": rows[i].T @ rows[i] / 20}}
        file = write_means(tmp_path / f"{i}.safetensors", get_method("regmean"), gram)
        models.append({"model": str(tmp_path / str(i)), "evidence": str(file)})
    given = {"off_diagonal": 1.0, "ridge": 0.0}
    merge({"merge_method": "regmean", "models": models, "parameters": given}, tmp_path / "out")
    outputs = torch.cat([x @ w for x, w in zip(rows, weights, strict=True)])
    best = torch.linalg.lstsq(torch.cat(rows), outputs).solution
    torch.testing.assert_close(load(tmp_path / "out")["h.weight"], best, rtol=1e-4, atol=1e-5)
