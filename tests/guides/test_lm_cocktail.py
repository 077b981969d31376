"""Weights from losses on a few examples."""

import math

import _line
import pytest
import torch
from _guided_models import nudge, save
from small_language import random_llama

from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data
from mergewise.guides import guide, write_recipe
from mergewise.guides.lm_cocktail import cocktail

TEXTS = ["a rose is a rose", "by any other name would smell as sweet", "so"]


def test_the_formula():
    assert cocktail([1, 2], 5.0) == pytest.approx([0.5498, 0.4502], abs=5e-5)
    assert cocktail([0.3, 0.3, 0.3], 0.1) == pytest.approx([1 / 3] * 3)
    assert cocktail([3.0, 1.0, 2.0], 1e-3) == pytest.approx([0, 1, 0])
    assert cocktail([1e4, 2e4], 1e-3) == [1.0, 0.0]


def test_a_target_gets_its_share_and_the_others_the_rest():
    assert cocktail([9.0, 1.0, 2.0], 5.0, target=0, alpha=0.6) == pytest.approx(
        [0.6, 0.4 * 0.549834, 0.4 * 0.450166], abs=1e-6
    )
    assert cocktail([9.0], 5.0, target=0, alpha=0.6) == [1.0]


def test_scaled_losses_have_no_unit():
    one, other = (cocktail([a * x for x in (1.0, 2.0, 5.0)], 1.0, "spread") for a in (1, 1e3))
    assert one == pytest.approx(other) and one != pytest.approx(cocktail([1.0, 2.0, 5.0], 1.0))
    assert cocktail([2.0, 2.0], 1.0, "spread") == [0.5, 0.5]


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """``base``, ``a`` and ``b``, and each one's mean loss on `TEXTS`, by hand."""
    root, losses = tmp_path_factory.mktemp("speakers"), {}
    for seed, name in enumerate(("base", "a", "b")):
        model = random_llama(0)
        if seed:
            nudge(model.module, seed)
        save(model.module, root / name)
        total = count = 0
        for text in TEXTS:
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                loss = model.module(ids, labels=ids).loss
            total, count = total + float(loss) * (ids.numel() - 1), count + ids.numel() - 1
        losses[name] = total / count
    _line.quick()
    return root, losses


def softmax(losses, temperature):
    powers = [math.exp(-loss / temperature) for loss in losses]
    return [power / sum(powers) for power in powers]


def test_losses_on_examples(speakers, tmp_path):
    root, losses = speakers
    said = []
    made = write_recipe(
        _line.soup(root, ["a", "b"]), "lm_cocktail", tmp_path / "r.yml", data=TEXTS,
        settings={"temperature": 0.1}, told=said.append,
    )  # fmt: skip
    expected = softmax([losses["a"], losses["b"]], 0.1)
    assert _line.weights(made) == pytest.approx(expected, rel=1e-4)
    assert len(said) == 2 and f"loss {losses['a']:.4f}"[:10] in made.text


def test_the_base_takes_part_where_task_vectors_are_added(speakers):
    root, losses = speakers
    recipe = _line.soup(root, ["a", "b"], "task_arithmetic", base_model=str(root / "base"))
    data = {name: Data(TEXTS) for name in "ab"}
    made = guide(recipe, "lm_cocktail", data=data, base=True, temperature=0.2)
    expected = softmax([losses[name] for name in ("a", "b", "base")], 0.2)
    assert _line.weights(made) == pytest.approx(expected[:2], rel=1e-4)
    recipe["parameters"] = {"normalize": True}
    with pytest.raises(GuideError, match="write `normalize: false`"):
        guide(recipe, "lm_cocktail", data=data, base=True)


def test_losses_of_tasks(tmp_path):
    pool = _line.save(tmp_path, plus=0.25, more=0.5)
    recipe = _line.soup(pool, ["plus", "more"])
    made = guide(
        recipe, "lm_cocktail", tasks=_line.tasks(), by="tasks", metric="distance", temperature=1.0
    )
    # half of eight places are moved: 4 (c^2 + c^2 / 4)
    assert _line.weights(made) == pytest.approx(softmax([0.3125, 1.25], 1.0))
    with pytest.raises(GuideError, match=r"task near has no finite loss; it has score, distance"):
        guide(recipe, "lm_cocktail", tasks=_line.tasks(), by="tasks")


def test_what_cannot_be_done(speakers):
    root, _ = speakers
    recipe = _line.soup(root, ["a", "b"])
    with pytest.raises(GuideError, match="no data for"):
        guide(recipe, "lm_cocktail")
    with pytest.raises(GuideError, match="give a tasks file"):
        guide(recipe, "lm_cocktail", by="tasks")
    with pytest.raises(GuideError, match="base=true needs a `base_model`"):
        guide(recipe, "lm_cocktail", base=True)
    each = {"a": Data(TEXTS), "b": Data(TEXTS[:1])}
    with pytest.raises(GuideError, match="compares losses on the same examples"):
        guide(recipe, "lm_cocktail", data=each)
    same = {name: Data(TEXTS) for name in "ab"}
    with pytest.raises(GuideError, match=r"target: one of .*a, .*b expected, got 'c'"):
        guide(recipe, "lm_cocktail", data=same, target="c")
    empty = {name: Data([{"body": 1}]) for name in "ab"}
    with pytest.raises(DataError, match="no text"):
        guide(recipe, "lm_cocktail", data=empty)
