"""Model Tailor's guide: the evidence its method reads, and a map of what is missed."""

import pytest
import torch
from safetensors.torch import load_file

import mergewise
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import load_evidence
from mergewise.guides import collect_for, guide
from mergewise.methods.model_tailor import tailored

TEXTS = {"a": ["a rose is a rose", "by any other name would smell as sweet"]}


@pytest.fixture
def given(recipe):
    return recipe("model_tailor", experts="a", each={"density": 0.25})


@pytest.fixture
def evidence(given, tmp_path):
    return collect_for(given, "model_tailor", None, tmp_path / "evidence", each=TEXTS)


def test_the_recipe_merges_as_the_method_says(models, given, evidence, tmp_path):
    made = guide(given, "model_tailor", evidence, out=tmp_path / "made.yml")
    made.write(tmp_path / "made.yml")
    mergewise.merge(tmp_path / "made.yml", tmp_path / "out")
    merged, base, expert = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", models.root / "base", models.root / "a")
    )
    name = "model.layers.1.mlp.down_proj.weight"
    gram = load_evidence(evidence_file(evidence)).values("input_gram", name)["gram"]
    kept = tailored(expert[name] - base[name], gram, 0.25, 0.5, 0.01, compensate=True)
    torch.testing.assert_close(merged[name], base[name] + kept, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"])


def evidence_file(evidence):
    [[file]] = evidence.values()
    return getattr(file, "path", file)


def test_what_is_missed_is_measured(given, evidence, tmp_path):
    def missed(**settings):
        given["parameters"] = settings
        made = guide(given, "model_tailor", evidence, measure=True)
        return [v for row in made.maps[0].values.values() for v in row.values()]

    fitted, bare = missed(), missed(compensate=False)
    assert len(fitted) == 14
    assert all(0 < one < other < 2 for one, other in zip(fitted, bare, strict=True))
    assert not guide(given, "model_tailor", evidence).maps


def test_other_methods_are_refused(recipe, models, given):
    with pytest.raises(GuideError, match="not for ties; change merge_method"):
        guide(recipe("ties"), "model_tailor", {})
    with pytest.raises(EvidenceError, match="reads input_gram"):
        guide(given, "model_tailor", {"a": models.a})
