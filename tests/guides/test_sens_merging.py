"""Sens-Merging: sensitivities by layer, distances of logits, and the softmax of both."""

import math

import pytest
import torch
from safetensors.torch import load_file
from small_language import byte_tokenizer, random_llama

import mergewise
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import Data, LiveModel, collect
from mergewise.evidence._inputs import Feeder, Reading
from mergewise.guides import collect_for, guide
from mergewise.guides._logits import distance
from mergewise.guides.sens_merging import coefficients, transferability

TEXTS = {"a": ["a rose is a rose", "by any other name"], "b": ["1 + 1 = 2", "2 + 2 = 4 + 0"]}


def test_coefficients_by_hand():
    alphas = [{"h.0": 0.6, "h.1": 0.8}, {"h.0": 1.0, "h.1": 0.0}]
    found = coefficients(alphas, [0.75, 0.25], 0.5)
    first, second = math.exp(0.6 * 0.75 / 0.5), math.exp(0.25 / 0.5)
    assert found[0]["h.0"] == pytest.approx(first / (first + second))
    assert found[1]["h.0"] == pytest.approx(second / (first + second))
    assert found[0]["h.1"] == pytest.approx(1 / (1 + math.exp(-0.8 * 0.75 / 0.5)))


def test_high_temperatures_make_it_even_and_low_ones_choose():
    alphas = [{"h.0": 0.6}, {"h.0": 0.1}]
    assert coefficients(alphas, [0.5, 0.5], 1e9)[0]["h.0"] == pytest.approx(0.5)
    assert coefficients(alphas, [0.5, 0.5], 1e-6)[0]["h.0"] == pytest.approx(1.0)


def test_distances_are_shared_out():
    assert transferability([[0, 1, 2], [3, 0, 3], [1, 2, 0]]) == pytest.approx([0.25, 0.5, 0.25])
    assert transferability([[0.0]]) == [1.0]


def fed(model, texts, batch_size):
    data = Data([{"text": text} for text in texts])
    return list(Feeder(data, model, Reading(batch_size), False))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_distances_of_logits_leave_padding_out(batch_size):
    one, other = random_llama(0), random_llama(1)
    found = distance(one, other, fed(one, TEXTS["b"], batch_size))
    each = []
    for text in TEXTS["b"]:
        ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            apart = one.module(input_ids=ids).logits - other.module(input_ids=ids).logits
        each.append(float(apart[0].norm(dim=-1).mean()))
    assert found == pytest.approx(sum(each) / 2, rel=1e-4)


def test_other_vocabularies_are_refused():
    one = random_llama(0)

    class Cut(torch.nn.Module):
        def forward(self, **inputs):
            return one.module(**inputs).logits[..., :-1]

    with pytest.raises(GuideError, match="must share their classes"):
        distance(LiveModel("cut", Cut()), one, fed(one, TEXTS["b"], 2))


def collected(given, tmp_path):
    return collect_for(given, "sens_merging", None, tmp_path / "evidence", each=TEXTS)


def data():
    return {name: Data(texts) for name, texts in TEXTS.items()}


def test_weights_of_language_models(models, recipe, tmp_path):
    given = recipe("task_arithmetic", each={"weight": 1.0})
    evidence = collected(given, tmp_path)
    options = {"dtype": "float32"}
    made = guide(given, "sens_merging", evidence, data=data(), temperature=0.02, options=options)
    alphas, weights = (
        [m.values for m in made.maps if m.what == what] for what in ("sensitivity", "weight")
    )
    layers = ["model.layers.0", "model.layers.1"]
    assert list(alphas[0]) == layers
    # norm 1 together with what lies outside of layers
    assert 0 < sum(alphas[0][layer]["layer"] ** 2 for layer in layers) < 1
    for layer in layers:
        both = [own[layer]["layer"] for own in weights]
        assert sum(both) == pytest.approx(2.0)
        assert both[0] != pytest.approx(both[1], abs=1e-3)
    mergewise.merge(made.recipe, tmp_path / "out", overwrite=True)
    merged, base, a, b = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", *(models.root / n for n in ("base", "a", "b")))
    )
    name = "model.layers.1.mlp.up_proj.weight"
    first, second = (own["model.layers.1"]["layer"] for own in weights)
    expected = base[name] + first * (a[name] - base[name]) + second * (b[name] - base[name])
    torch.testing.assert_close(merged[name], expected, rtol=1e-4, atol=1e-5)


def test_a_single_expert_is_returned(models, recipe, tmp_path):
    given = recipe("task_arithmetic", experts="a", each={"weight": 0.3})
    texts = {"a": TEXTS["a"]}
    evidence = collect_for(given, "sens_merging", None, tmp_path / "evidence", each=texts)
    made = guide(given, "sens_merging", evidence, data={"a": Data(TEXTS["a"])})
    mergewise.merge(made.recipe, tmp_path / "out")
    merged, expert = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models.root / "a")
    )
    torch.testing.assert_close(merged, expert)


def test_what_is_missing_is_named(models, recipe, tmp_path):
    given = recipe("task_arithmetic", each={"weight": 1.0})
    keep = {"gradient_weight": {"keep": "product"}}
    files = {
        n: collect("gradient_weight", models.root / n, TEXTS[n], tmp_path / n, options=keep)
        for n in "ab"
    }
    with pytest.raises(GuideError, match="no data for"):
        guide(given, "sens_merging", files)
    with pytest.raises(EvidenceError, match="without 'absolute'"):
        guide(given, "sens_merging", files, data=data())
    with pytest.raises(GuideError, match="writes weight for every expert"):
        guide(recipe("model_stock", each={}), "sens_merging", files, data=data())
