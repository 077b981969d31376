"""Learned soups: the gradient is the right one, and weights go where the loss falls."""

from types import SimpleNamespace

import _line
import pytest
import torch
from _guided_models import nudge, save
from safetensors.torch import load_file
from small_language import random_llama

from mergewise.checkpoint import open_checkpoint
from mergewise.engine import merge
from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data, open_model
from mergewise.guides import _learning, guide, learned_soup
from mergewise.guides._learning import Average
from mergewise.guides.learned_soup import _Batches

TEXTS = [{"text": "abababababab"}, {"text": "babababababababa"}, {"text": "cacacacaca"}]


def train(model, steps=12):
    """Let a model learn the texts a little."""
    rows = [torch.tensor([model.tokenizer(r["text"])["input_ids"]]) for r in TEXTS]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(steps):
        for ids in rows:
            optimizer.zero_grad()
            model.module(ids, labels=ids).loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``good`` has learned the texts, ``bad`` moved at random, ``twin`` is the start."""
    root = tmp_path_factory.mktemp("learned")
    for name in ("good", "bad", "twin"):
        model = random_llama(0)
        if name == "good":
            train(model)
        if name == "bad":
            nudge(model.module, 1)
        save(model.module, root / name)
    return root


def soup(models, names, data=None, recipe=None, **settings):
    recipe = recipe or _line.soup(models, names)
    data = {n: Data(TEXTS if data is None else data) for n in names}
    return guide(recipe, "learned_soup", data=data, **settings)


def weights_of(made, i):
    """By filter, of the i-th expert."""
    [slice_] = made.recipe.output.modules[0].slices
    return {c.filter: c.value for c in slice_.sources[i].parameters["weight"].conditions}


@pytest.mark.parametrize("kept", [2 << 30, 0])
def test_the_gradient_is_that_of_automatic_differentiation(models, monkeypatch, kept):
    monkeypatch.setattr(_learning, "_KEPT", kept)
    checkpoints = [open_checkpoint(models / n) for n in ("good", "bad", "twin")]
    names = list(checkpoints[0].tensors)
    groups = {name: name.split(".")[-2] for name in names}
    model = open_model(models / "good")
    average = Average(model, checkpoints, groups)
    logits = torch.randn(len(average.order), 3, generator=torch.Generator().manual_seed(0))
    average.put(torch.softmax(logits.double(), 1))
    ids = torch.tensor([[1, 70, 71, 70, 71, 90]])
    model.module(ids, labels=ids).loss.backward()
    asked = logits.clone().requires_grad_()
    torch.softmax(asked, 1).backward(average.slopes())

    stored = [load_file(c.files[0]) for c in checkpoints]
    wanted = logits.clone().requires_grad_()
    rows = dict(zip(average.order, torch.softmax(wanted, 1), strict=True))
    merged = {n: sum(w * s[n] for w, s in zip(rows[groups[n]], stored, strict=True)) for n in names}
    found = torch.func.functional_call(model.module, merged, (ids,), {"labels": ids})
    found.loss.backward()
    torch.testing.assert_close(asked.grad, wanted.grad, rtol=1e-3, atol=1e-6)
    assert wanted.grad.abs().max() > 1e-3


@pytest.mark.parametrize("granularity", ["tensor", "layer", "model"])
def test_weights_go_to_the_model_that_knows_the_texts(models, tmp_path, granularity):
    made = soup(models, ["bad", "good"], granularity=granularity, epochs=4, lr=0.3)
    before, after = (float(made.notes[0].split()[i]) for i in (1, 5))
    assert after < before - 0.05
    bad, good = weights_of(made, 0), weights_of(made, 1)
    assert {k: round(v + bad[k], 6) for k, v in good.items()} == dict.fromkeys(good, 1.0)
    assert sum(good.values()) > sum(bad.values())
    assert len(good) == {"tensor": 22, "layer": 6, "model": 1}[granularity]
    merge(made.recipe, tmp_path / "out")
    assert loss_of(tmp_path / "out") == pytest.approx(after, rel=1e-3)
    assert made.maps[1].what == "weight" and len(made.maps[1].values) == 2


def loss_of(folder):
    model, total, count = open_model(folder), 0.0, 0
    for record in TEXTS:
        ids = torch.tensor([model.tokenizer(record["text"])["input_ids"]])
        with torch.no_grad():
            loss = float(model.module(ids, labels=ids).loss)
        total, count = total + loss * (ids.numel() - 1), count + ids.numel() - 1
    return total / count


def test_equal_models_keep_equal_weights_and_that_is_told(models):
    save(random_llama(0).module, models / "twin2")
    made = soup(models, ["twin", "twin2"], temperature=False)
    assert set(weights_of(made, 0).values()) == {0.5}
    assert any("the loss did not fall" in warning for warning in made.warnings)
    assert "beta 1 at last" in made.text


def test_what_does_not_fit_a_recipe_is_learned_by_layer(models, monkeypatch):
    monkeypatch.setattr(learned_soup, "_MOST", 30)
    made = soup(models, ["bad", "good"], epochs=1)
    assert "weights by layer" in made.notes and len(weights_of(made, 0)) == 6
    with pytest.raises(GuideError, match=r"42 weights by tensor do not fit.*granularity=layer"):
        soup(models, ["bad", "good"], granularity="tensor")


def test_what_cannot_be_done(models):
    with pytest.raises(GuideError, match=r"learns the weights of `linear`.*task_arithmetic"):
        recipe = _line.soup(models, ["good"], "task_arithmetic", base_model=str(models / "twin"))
        soup(models, ["good"], recipe=recipe)
    with pytest.raises(GuideError, match="no data for"):
        guide(_line.soup(models, ["good", "bad"]), "learned_soup")
    with pytest.raises(DataError, match="its text is empty"):
        soup(models, ["good", "bad"], data=[{"text": ""}])


def test_batches_are_shuffled_by_epoch_and_seed(monkeypatch):
    fed = [[SimpleNamespace(inputs={"x": torch.zeros(4)}, n=10 * s + i) for i in range(9)]
           for s in range(2)]  # fmt: skip

    def order(batches, epoch):
        return [one.n for one in batches(epoch)]

    batches = _Batches(fed, 0)
    first = order(batches, 0)
    assert first[:4] == [0, 10, 1, 11] and first == order(batches, 0)
    assert first != order(batches, 1) != order(batches, 2) and order(batches, 1) == order(
        batches, 1
    )
    assert sorted(order(batches, 1)) == sorted(first)
    other = _Batches(fed, 1)
    assert order(other, 0) == first and order(other, 1) != order(batches, 1)
    monkeypatch.setattr(learned_soup, "_HELD", 100)
    large = _Batches(fed, 0)
    assert order(large, 0) == order(large, 1) == first
