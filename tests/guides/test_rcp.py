"""RCP-Merging: a reasoning model, and what domain examples want that reasoning allows."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mergewise
from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data, open_model
from mergewise.guides import guide

TEXTS = {"a": ["one two three", "so four"], "b": ["a rose is", "by any other", "name"]}


@pytest.fixture
def data():
    return {name: Data([{"text": text} for text in texts]) for name, texts in TEXTS.items()}


def gradients(folder, texts):
    """Of every text's mean loss: gradient times weight, by tensor."""
    live = open_model(folder)
    module = live.module.train()
    for text in texts:
        module.zero_grad()
        ids = torch.tensor([live.tokenizer(text)["input_ids"]])
        module(input_ids=ids, labels=ids).loss.backward()
        yield {n: (p.grad * p).detach().double() for n, p in module.named_parameters()}


def state(folder):
    return {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}


def by_hand(models, penalty):
    base, mine, theirs = (state(models.root / n) for n in ("base", "a", "b"))
    squares = [
        {n: v**2 for n, v in one.items()} for one in gradients(models.root / "a", TEXTS["a"])
    ]
    prior = {n: sum(one[n] for one in squares) / len(squares) for n in base}
    votes = dict.fromkeys(base, 0)
    for one in gradients(models.root / "b", TEXTS["b"]):
        for n, v in one.items():
            u = v + penalty * prior[n] * (mine[n] - theirs[n]) ** 2
            votes[n] = votes[n] + torch.where(u <= 0, 1, -1)
    return {n: mine[n] + torch.where(votes[n] > 0, theirs[n] - base[n], 0) for n in base}


@pytest.mark.parametrize("penalty", [0.0, 1000.0])
def test_elements_are_chosen_as_the_formula_says(tmp_path, models, recipe, data, penalty):
    document = recipe("task_arithmetic", each={"weight": 1})
    made = guide(document, "rcp", data=data, folder=tmp_path / "kept", penalty=penalty)
    mergewise.merge(made.recipe, tmp_path / "out")
    out, wanted = state(tmp_path / "out"), by_hand(models, penalty)
    close = [torch.isclose(out[n], wanted[n], atol=1e-6) for n in wanted]
    # signs of numbers near 0 may differ in rounding
    assert sum(int(c.sum()) for c in close) > 0.999 * sum(c.numel() for c in close)


def test_a_huge_penalty_keeps_the_reasoning_model(tmp_path, models, recipe, data):
    document = recipe("task_arithmetic", each={"weight": 1})
    made = guide(document, "rcp", data=data, folder=tmp_path / "kept", penalty=1e30)
    mergewise.merge(made.recipe, tmp_path / "out")
    out, mine = state(tmp_path / "out"), state(models.root / "a")
    for name, gradient in next(gradients(models.root / "a", TEXTS["a"])).items():
        held = gradient.abs() > 1e-9
        assert torch.allclose(out[name][held], mine[name][held], atol=1e-6), name
    assert "are added to" in made.notes[-1]


def test_the_reasoning_model_may_be_the_second(tmp_path, models, recipe, data):
    document = recipe("task_arithmetic", each={"weight": 1}, name="mine")
    made = guide(document, "rcp", data=data, folder=tmp_path, reasoning="b")
    stage, last = yaml.safe_load_all(made.text)
    assert stage["models"][0]["model"].endswith("a") and stage["parameters"] == {"localize": "mask"}
    assert [m["model"].rsplit("/")[-1] for m in last["models"]] == ["b", "domain"]
    assert last["name"] == "mine"


def test_what_it_cannot_do_is_told_early(tmp_path, recipe, data):
    document = recipe("task_arithmetic", each={"weight": 1})
    with pytest.raises(GuideError, match="there are 1 experts"):
        guide(recipe("task_arithmetic", experts="a"), "rcp", data={"a": data["a"]}, folder=tmp_path)
    with pytest.raises(GuideError, match=r"reasoning: one of .* expected, got 'c'"):
        guide(document, "rcp", data=data, folder=tmp_path / "kept", reasoning="c")
    with pytest.raises(DataError, match="no records"):
        guide(document, "rcp", data=data | {"b": Data([])}, folder=tmp_path / "kept")
    with pytest.raises(GuideError, match="say where"):
        guide(document, "rcp", data=data)
    assert not (tmp_path / "kept").exists()
