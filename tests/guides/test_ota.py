"""OTA: from trainers' optimizer files to a merge weighted by curvature."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mergewise
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import load_evidence
from mergewise.guides import guide, write_recipe
from mergewise.plan import build_plan


def state(folder):
    return {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def trained(tmp_path, models):
    """Folders of trainers' checkpoints with second moments, one an expert, and the moments."""
    folders, moments = {}, {}
    for name in "ab":
        draw = torch.Generator().manual_seed(ord(name))
        weights = load_file(models.root / name / "model.safetensors")
        moments[name] = {n: torch.rand(t.shape, generator=draw) for n, t in weights.items()}
        folders[name] = tmp_path / f"trainer_{name}"
        folders[name].mkdir()
        save_file(
            {f"exp_avg_sq.{n}": v for n, v in moments[name].items()},
            folders[name] / "optimizer.safetensors",
            metadata={"step": "1000000", "beta2": "0.5"},
        )
    return folders, moments


def test_a_trainers_folder_is_all_it_takes(tmp_path, models, recipe, trained):
    folders, v = trained
    document = recipe("task_arithmetic", each={"weight": 1})
    settings = {"density": 0.4}
    made = write_recipe(document, "ota", tmp_path / "ota.yml", each=folders, settings=settings)
    mergewise.merge(tmp_path / "ota.yml", tmp_path / "out")
    base, a, b, out = (
        state(p) for p in [*(models.root / n for n in ("base", "a", "b")), tmp_path / "out"]
    )
    name = "model.layers.0.mlp.up_proj.weight"
    top = bottom = 0.0
    for own, moment in ((a, v["a"]), (b, v["b"])):
        d, curve = own[name] - base[name], moment[name].double()
        saliency = (curve * d**2).flatten()
        kept = saliency >= saliency.topk(round(0.4 * d.numel())).values[-1]
        p = curve.sqrt() * kept.view_as(d)
        top, bottom = top + p * d, bottom + p
    wanted = base[name] + torch.where(bottom > 0, top / bottom.clamp(min=1e-30), 0)
    close = torch.isclose(out[name], wanted, atol=1e-6)
    assert close.double().mean() > 0.995  # ties in float32 may fall otherwise
    assert "merge_method task_arithmetic becomes ota" in made.notes
    assert "weight is dropped: ota has no such parameter" in made.notes


def test_densities_of_the_recipe_stand(tmp_path, recipe, trained):
    document = recipe("ties", each={"weight": 1})
    document["models"][0]["parameters"]["density"] = 0.3
    made = write_recipe(document, "ota", tmp_path / "ota.yml", each=trained[0])
    [text] = yaml.safe_load_all(made.text)
    assert [m["parameters"]["density"] for m in text["models"]] == [0.3, 0.4]
    assert text["parameters"] == {
        "moment": "adam", "power": 0.5, "granularity": "tensor", "fallback": "base",
    }  # fmt: skip


def test_a_recipe_for_ota_may_come_without_evidence(tmp_path, recipe, trained):
    document = recipe("ota", each={}, parameters={"threshold": 0.001})
    made = write_recipe(document, "ota", tmp_path / "ota.yml", each=trained[0])
    tensors = build_plan(made.recipe).output.tensors.values()
    assert all(t.statistics and t.values["threshold"] == [0.001] * 2 for t in tensors)


def test_curvature_may_be_measured_on_texts(tmp_path, recipe):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "a rose is a rose"}))
    settings = {"moment": "fisher", "collect": "fisher.labels=data"}
    document = recipe("task_arithmetic", each={"weight": 1})
    made = write_recipe(document, "ota", tmp_path / "x.yml", data=file, settings=settings)
    own = load_evidence(tmp_path / "x.evidence/a.safetensors")
    assert own.statistics == ("fisher",)
    assert own.record.statistics["fisher"].options["labels"] == "data"
    mergewise.merge(made.recipe, tmp_path / "out")


def test_what_it_cannot_do_is_told_early(tmp_path, recipe, trained, models):
    document = recipe("task_arithmetic", each={"weight": 1})
    with pytest.raises(EvidenceError, match=r"ota reads adam of .*, and there is no evidence"):
        guide(document, "ota")
    with pytest.raises(
        EvidenceError, match=r"none here; in a folder, optimizer.safetensors, optimizer.pt"
    ):
        # of the second expert, before the first is read
        each = {"a": trained[0]["a"], "b": models.root / "b"}
        write_recipe(document, "ota", tmp_path / "x.yml", each=each)
    with pytest.raises(GuideError, match="linear is none"):
        guide({**recipe("linear", each={"weight": 1}), "base_model": None}, "ota")
    with pytest.raises(GuideError, match="no option 'labels'"):
        guide(document, "ota", collect="adam.labels=data")
    assert not list(tmp_path.glob("x.*"))
