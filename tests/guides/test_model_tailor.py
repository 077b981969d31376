"""Model Tailor's guide: the evidence its method reads, and a map of what is missed."""

import pytest
import torch
from _guided_models import nudge, save
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


def test_weights_stored_the_other_way_are_turned(tmp_path):
    """GPT-2's are [inputs, outputs]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=259, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    save(module, tmp_path / "base")
    nudge(module, 1)
    save(module, tmp_path / "a")
    given = {
        "merge_method": "model_tailor",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "a")}],
        "parameters": {"density": 0.25},
    }
    evidence = collect_for(given, "model_tailor", None, tmp_path / "evidence", each=TEXTS)
    made = guide(given, "model_tailor", evidence, measure=True)
    mergewise.merge(made.recipe, tmp_path / "out")
    merged, base, expert = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "base", "a")
    )
    name = "transformer.h.0.mlp.c_fc.weight"
    gram = load_evidence(evidence_file(evidence)).values("input_gram", name)["gram"]
    delta = (expert[name] - base[name]).T
    kept = tailored(delta, gram, 0.25, 0.5, 0.01, compensate=True)
    torch.testing.assert_close(merged[name], base[name] + kept.T, rtol=1e-4, atol=1e-5)
    apart, whole = ((x.double() @ gram.double() * x).sum() for x in (kept - delta, delta))
    assert made.maps[0].values["transformer.h.0"]["mlp.c_fc"] == pytest.approx(float(apart / whole))


def test_other_methods_are_refused(recipe, models, given):
    with pytest.raises(GuideError, match="not for ties; change merge_method"):
        guide(recipe("ties"), "model_tailor", {})
    with pytest.raises(EvidenceError, match="reads input_gram"):
        guide(given, "model_tailor", {"a": models.a})
