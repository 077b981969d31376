"""Which experts' data is most like a target's, by embeddings of the base."""

import _line
import pytest
import torch
from _guided_models import nudge, save
from small_language import random_llama

from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data, open_model
from mergewise.guides import guide
from mergewise.guides._embeddings import direction

DATA = {
    "sums": [{"text": f"{a} + {b} = {a + b}"} for a in range(3) for b in range(4)],
    "roses": [{"text": "a rose is a rose"}, {"text": "roses are red"}, {"text": "no rose"}],
    "shouts": [{"text": "AAAA BBBB"}, {"text": "CCCC!"}],
}
TARGETS = {"sums": "7 + 1 = 8\n5 + 4 = 9", "roses": "a red rose", "shouts": "DDDD AAAA!"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("base", *DATA)):
        model = random_llama(0)
        if seed:
            nudge(model.module, seed)
        save(model.module, root / name)
    for name, text in TARGETS.items():
        (root / f"{name}.jsonl").write_text(
            "\n".join(f'{{"text": "{line}"}}' for line in text.splitlines())
        )
    return root


def chosen(models, target, method="task_arithmetic", names=DATA, **settings):
    parts = {"base_model": str(models / "base")} if method != "linear" else {}
    data = {name: Data(DATA[name]) for name in names}
    target = str(models / f"{target}.jsonl")
    recipe = _line.soup(models, names, method, **parts)
    return guide(recipe, "adapter_soup", data=data, target=target, **settings)


@pytest.mark.parametrize("target", list(DATA))
def test_one_is_the_nearest(models, target):
    found = chosen(models, target, k=1)
    assert _line.labels(found) == [target] and _line.weights(found) == [1.0]
    assert len([note for note in found.notes if note.endswith("left out")]) == 2


def test_several_have_equal_weights(models):
    found = chosen(models, "sums", k=2, names=["roses", "shouts", "sums"])
    assert "sums" in _line.labels(found) and _line.weights(found) == [0.5, 0.5]
    every = chosen(models, "sums")
    assert _line.weights(every) == pytest.approx([1 / 3] * 3)
    assert any("all 3 experts are chosen" in warning for warning in every.warnings)


def test_likeness_is_the_mean_cosine_over_pairs_whatever_the_padding(models):
    model = open_model(models / "base", "body")

    def embedded(text):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model.module(ids).last_hidden_state.double().mean(1)[0]
        return mean / mean.norm()

    one, other = ([r["text"] for r in DATA[name]] for name in ("sums", "roses"))
    cosines = [float(embedded(x) @ embedded(y)) for x in one for y in other]
    for size in (1, 5):
        found = [direction(model, Data(DATA[n]), {"batch_size": size}) for n in ("sums", "roses")]
        assert float(found[0] @ found[1]) == pytest.approx(sum(cosines) / len(cosines), rel=1e-6)


def test_without_a_base_a_model_must_be_named(models):
    with pytest.raises(GuideError, match="set encoder=CHECKPOINT"):
        chosen(models, "roses", "linear", k=1)
    found = chosen(models, "roses", "linear", k=1, encoder=str(models / "base"))
    assert _line.labels(found) == ["roses"]
    with pytest.raises(GuideError, match="encoder: no checkpoint"):
        chosen(models, "roses", "linear", k=1, encoder=str(models / "nobody"))


def test_a_target_must_be_given_and_be_there(models):
    with pytest.raises(GuideError, match="the setting target is required"):
        guide(_line.soup(models, ["sums"]), "adapter_soup")
    with pytest.raises(DataError, match="nothing"):
        chosen(models, "nothing", k=1)
