"""At which labels the loss is taken, and that nothing else decides them."""

import pytest
import torch
from _gradient_models import (
    collect_into,
    collected,
    examples,
    gradient,
    next_token_loss,
    same,
    texts,
    tiny_bert,
    tiny_llama,
    values,
)
from torch import nn

from mergewise.errors import DataError, EvidenceError
from mergewise.evidence._objective import Example
from mergewise.evidence.statistics._sums import MemorySums
from mergewise.evidence.statistics.fisher import Fisher

TEXTS = texts((5, 3, 7, 2, 6, 4))


def softmax_regression(points=12, inputs=3, classes=4):
    torch.manual_seed(4)
    model = nn.Linear(inputs, classes).double()
    x = torch.randn(points, inputs).double()
    return model, x, [Example({"input": row[None]}, key=(i,)) for i, row in enumerate(x)]


def closed_form(model, x):
    """Sum over examples of p(1-p) x^2: what the gradient (p - y) x^T squares to on average."""
    p = model(x).detach().softmax(-1)
    spread = p * (1 - p)
    return {"weight": spread.T @ x.square(), "bias": spread.sum(0)}


def test_expected_fisher_of_softmax_regression_has_a_closed_form():
    model, x, rows = softmax_regression()
    same(collected(Fisher(), model, rows, labels="expected"), "squares", closed_form(model, x))


def test_sampled_labels_are_the_fisher_in_expectation():
    model, x, rows = softmax_regression(points=5)
    draws = 600
    sums = collected(Fisher(), model, rows, labels="model", samples=draws)
    expected = closed_form(model, x)
    for name, value in expected.items():
        # a squared gradient is at most x^2 and its spread at most half of that
        bound = 5 * 0.5 * x.square().sum(0).sqrt() * x.abs().amax(0) / draws**0.5
        room = bound if name == "weight" else 5 * 0.5 * len(x) ** 0.5 / draws**0.5
        assert ((sums.get(name, "squares") - value).abs() <= room).all()
    assert sums.counts["weight"]["examples"] == 5


def test_data_labels_of_a_regression():
    model, x, _ = softmax_regression()
    y = torch.arange(len(x)) % 4
    rows = [Example({"input": row[None]}, int(label)) for row, label in zip(x, y, strict=True)]
    residual = model(x).detach().softmax(-1) - nn.functional.one_hot(y, 4)
    expected = {"weight": residual.square().T @ x.square(), "bias": residual.square().sum(0)}
    same(collected(Fisher(), model, rows, labels="data"), "squares", expected)


def test_argmax_labels_of_a_language_model():
    model = tiny_llama().double()
    sums = collected(Fisher(), model, examples(TEXTS), labels="argmax")
    squares = []
    for ids in TEXTS:
        best = model(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(-1)

        def loss(call, ids=ids, best=best):
            table = call(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            return -table[torch.arange(len(best)), best].sum()

        squares.append({n: g.square() for n, g in gradient(model, loss).items()})
    same(sums, "squares", {n: sum(s[n] for s in squares) for n in squares[0]})


def test_the_fisher_of_a_language_model_sums_over_its_tokens():
    # labels of one token do not depend on those drawn for others, so squares add up on average
    model = tiny_llama().double()
    ids = TEXTS[0]
    name = "lm_head.weight"
    sums = collected(Fisher(), model, examples([ids]), labels="model", samples=4000, tensors=name)
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1].detach()
    p = model.lm_head(hidden).softmax(-1).detach()
    expected = (p * (1 - p)).T @ hidden.square()
    error = (sums.get(name, "squares") - expected).abs().max() / expected.max()
    assert error < 0.15


@pytest.mark.parametrize("left", [False, True])
def test_batches_and_padding_do_not_matter(left):
    model = tiny_llama().double()
    one = collected(Fisher(), model, examples(TEXTS, size=1))
    for size in (2, 5):
        other = collected(Fisher(), model, examples(TEXTS, size=size, left=left))
        same(other, "squares", values(one, "squares"))
        assert other.counts == one.counts


def test_shares_and_order_do_not_matter():
    model = tiny_llama().double()
    rows = examples(TEXTS)
    whole = collected(Fisher(), model, rows)
    parts = MemorySums(True)
    for share in (rows[1::2], rows[::2]):
        collect_into(parts, Fisher(), model, list(reversed(share)))
    same(parts, "squares", values(whole, "squares"))
    assert parts.counts == whole.counts


def test_another_seed_draws_other_labels():
    model = tiny_llama().double()
    one, other = (collected(Fisher(), model, examples(TEXTS), seed=s) for s in (0, 1))
    name = "lm_head.weight"
    assert not torch.allclose(one.get(name, "squares"), other.get(name, "squares"))
    data = collected(Fisher(), model, examples(TEXTS), labels="data")
    assert not torch.allclose(one.get(name, "squares"), data.get(name, "squares"))


def test_the_expectation_of_a_classifier_weighs_every_class():
    model = tiny_bert(classes=3).eval().double()
    sums = collected(Fisher(), model, examples(TEXTS), labels="expected")
    expected: dict = {}
    for ids in TEXTS:
        p = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1).detach()
        for c in range(3):

            def loss(call, ids=ids, c=c):
                return -call(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[c]

            for name, g in gradient(model, loss).items():
                expected[name] = expected.get(name, 0) + p[c] * g.square()
    same(sums, "squares", expected)
    assert sums.counts["classifier.weight"]["examples"] == len(TEXTS)


def test_wrong_labels_are_refused_by_example():
    model, x, rows = softmax_regression()
    with pytest.raises(DataError, match=r"example \(0,\) has no label"):
        collected(Fisher(), model, rows, labels="data")
    with pytest.raises(DataError, match="label \\[4\\] for 4 classes"):
        collected(Fisher(), model, [Example({"input": x[:1]}, 4)], labels="data")
    with pytest.raises(EvidenceError, match="at most 32"):
        collected(Fisher(), tiny_llama(), examples(TEXTS), labels="expected")
    short = Example({"input_ids": torch.tensor([TEXTS[0]])}, torch.tensor([1, 2]))
    with pytest.raises(DataError, match="token labels for 5 tokens"):
        collected(Fisher(), tiny_llama(), [short], labels="data")


def test_texts_of_one_token_predict_nothing_and_are_not_counted():
    model = tiny_llama().double()
    sums = MemorySums(True)
    seen = collect_into(sums, Fisher(), model, examples([[3], TEXTS[0]]), labels="data")
    assert (seen.examples, seen.skipped) == (1, 1)
    assert sums.counts["lm_head.weight"]["examples"] == 1
    direct = gradient(model, next_token_loss(TEXTS[0]))
    same(sums, "squares", {n: g.square() for n, g in direct.items()})
