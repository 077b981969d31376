"""Evidence files in a recipe: found, checked against the tensors, refused at the model's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import write_means
from small_models import family, load, recipe, save

from mergewise import merge, plan
from mergewise.checkpoint import open_checkpoint
from mergewise.errors import RecipeError
from mergewise.evidence.statistics._record import weights_of
from mergewise.methods import all_methods, get_method


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
    told = problems(document)
    assert "nowhere.safetensors: no such file; check the path, or collect it (" in told
    assert "collect fisher " in told and told.endswith("--data DATA -o nowhere.safetensors)")


def test_an_absent_file_that_nothing_reads_is_not_to_be_collected(folders: Path) -> None:
    document = recipe(folders, "fisher")
    document["merge_method"] = "linear"
    document["models"][0]["parameters"] = {"weight": 1.0}
    document["models"][0]["evidence"] = "nowhere.safetensors"
    assert problems(document).endswith("nowhere.safetensors: no such file; check the path")


def test_evidence_of_a_training_is_read_not_collected(folders: Path) -> None:
    document = recipe(folders, "ota")
    document["models"][0]["evidence"] = "nowhere.safetensors"
    told = problems(document)
    assert "collect adam " in told and told.endswith("or let a guide do so (mergewise guides)")
    assert "--data THAT_FILE -o nowhere.safetensors)" in told


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


def warnings(document: Any) -> str:
    return "\n".join(plan(document).warnings)


def rewritten(file: str, means: Any, **changes: Any) -> None:
    """An evidence file of `means`, with changes to what it says of itself."""
    path = Path(file)
    path.unlink(missing_ok=True)
    write_means(path, get_method("fisher"), {"fisher": means}, **changes)


def test_evidence_of_other_weights_is_warned_of(folders: Path) -> None:
    document = recipe(folders, "fisher")
    assert warnings(document) == ""
    means = {"model.norm.weight": torch.ones(16)}
    for model in document["models"]:
        known = {"name": "its", "weights": weights_of(open_checkpoint(model["model"]))}
        rewritten(model["evidence"], means, model=known)
    assert warnings(document) == ""
    rewritten(document["models"][0]["evidence"], means, model={**known, "name": "other"})
    text = warnings(document)
    assert "expert_a.fisher.safetensors was collected on other, with other weights" in text
    assert "expert_b" not in text
    rewritten(document["models"][0]["evidence"], means, model={"name": "other"})
    assert warnings(document) == ""


def test_a_statistic_that_is_counted_otherwise_is_warned_of(folders: Path) -> None:
    document = recipe(folders, "fisher")
    means = {"model.norm.weight": torch.ones(16)}
    options = {"per": "batch", "batch_size": 8}
    for model in document["models"]:
        rewritten(model["evidence"], means, unit="batches", options=options)
    text = warnings(document)
    assert "fisher was added up over batches (batch_size=8, per=batch), and fisher is" in text
    assert "defined for sums over examples" in text


def test_different_options_are_warned_of(folders: Path) -> None:
    document = recipe(folders, "fisher")
    means = {"model.norm.weight": torch.ones(16)}
    for model, labels in zip(document["models"], ("model", "data"), strict=True):
        rewritten(model["evidence"], means, options={"labels": labels, "samples": 1})
    assert "different options (labels=model and data)" in warnings(document)


def test_what_only_some_models_describe_is_warned_of(folders: Path) -> None:
    document = recipe(folders, "fisher")
    means = {"model.norm.weight": torch.ones(16)}
    rewritten(document["models"][0]["evidence"], means)
    text = warnings(document)
    assert "the evidence of" in text and "expert_a does not describe 20 tensors" in text
    assert "fisher merges them as if none did (the weighted mean)" in text
    found = plan(document).output.tensors
    assert found["model.norm.weight"].reason == ""
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found[name].reason == "only some models' evidence describes it: the weighted mean"
    assert [name for name, t in found.items() if t.statistics] == ["model.norm.weight"]


def test_two_files_with_the_same_statistic_are_refused(folders: Path) -> None:
    document = recipe(folders, "fisher")
    files = [model["evidence"] for model in document["models"]]
    document["models"][0]["evidence"] = files
    text = problems(document)
    assert "both hold fisher of" in text and "mergewise evidence merge A B" in text
    assert "(20 tensors more likewise" in text and text.count("\n") == 0


def test_convolutions_in_groups_are_averaged(tmp_path: Path) -> None:
    """Their Gram matrix is over all groups' patches."""
    weights = [torch.full((4, 1, 3, 3), float(i)) for i in range(2)]
    plain = torch.eye(2)
    models = []
    for i in range(2):
        save(tmp_path / str(i), {"deep.weight": weights[i], "w": plain})
        grams = {"deep.weight": torch.eye(36) * (i + 1), "w": plain}
        file = tmp_path / f"{i}.safetensors"
        write_means(file, get_method("regmean"), {"input_gram": grams})
        models.append({"model": str(tmp_path / str(i)), "evidence": str(file)})
    document = {"merge_method": "regmean", "models": models}
    told = plan(document).output.tensors["deep.weight"].reason
    assert told == "no evidence for each of its groups: the weighted mean"
    merge(document, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")["deep.weight"], torch.full((4, 1, 3, 3), 0.5))


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "x" * 5000, "a\0b", "."])
def test_paths_that_no_file_can_have(path: str, folders: Path) -> None:
    document = recipe(folders, "fisher")
    document["models"][0]["evidence"] = path
    assert "evidence: " in problems(document)
    document = recipe(folders, "linear")
    document["models"][0]["model"] = path
    assert problems(document)


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


@pytest.mark.parametrize("name", [n for n, m in all_methods().items() if m.needs_at_defaults()])
def test_every_method_says_what_becomes_of_tensors_without_evidence(name: str) -> None:
    assert all(need.otherwise for need in get_method(name).needs_at_defaults())


def test_tensors_without_evidence_are_told(folders: Path) -> None:
    found = plan(recipe(folders, "regmean")).output.tensors
    assert found["model.norm.weight"].reason == "no evidence describes it: the weighted mean"
    assert found["model.layers.0.self_attn.q_proj.weight"].reason == ""


def test_a_start_at_the_base_needs_one(folders: Path) -> None:
    document = recipe(folders, "mats")
    document.pop("base_model", None)
    document["parameters"] = {"metric": "gram", "init": "task_arithmetic"}
    assert "mats: init: task_arithmetic begins at the base, and there is none" in problems(document)
    document["parameters"] = {"metric": "gram"}
    assert plan(document).output.tensors


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("ota", {}, "read it from the file in which training left it (mergewise collect adam"),
        ("localize_and_stitch", {"localize": "mask"}, "collect mask"),
        ("regmean", {}, "collect it (mergewise collect input_gram"),
    ],
)
def test_how_evidence_is_had(folders: Path, method: str, given: Any, words: str) -> None:
    document = recipe(folders, method)
    document["parameters"] = given
    for model in document["models"]:
        model.pop("evidence", None)
    text = problems(document)
    assert words in text and ("--data THAT_FILE" in text) == (method != "regmean")
