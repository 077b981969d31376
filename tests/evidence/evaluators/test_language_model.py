"""Loss on texts, against a direct computation in float64."""

import math

import pytest
import torch
from real_models import stories
from small_language import random_llama, task

from mergewise.errors import DataError, TaskError
from mergewise.evidence.evaluators import _likelihood
from mergewise.evidence.evaluators._likelihood import Span, joined, windows
from mergewise.evidence.evaluators.language_model import LanguageModel
from mergewise.evidence.models._live import open_model

TEXTS = ["The cat sat on the mat.", "Grüße aus Köln", "x = [1, 2, 3]", "a"]


def direct(model, ids, first=1):
    """Sum of nats and number of hits, one sequence, no padding, float64."""
    with torch.inference_mode():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].double()
    logp = logits.log_softmax(-1)
    nats = -sum(float(logp[i - 1, ids[i]]) for i in range(first, len(ids)))
    hits = sum(int(logits[i - 1].argmax()) == ids[i] for i in range(first, len(ids)))
    return nats, hits


@pytest.mark.parametrize("bos", [True, False])
def test_metrics_equal_a_direct_computation(bos):
    model = random_llama(bos=bos)
    score = task(LanguageModel, TEXTS).score(model, "test")
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    each = [direct(model, one) for one in ids]
    tokens = sum(len(one) - 1 for one in ids)
    nats = sum(nats for nats, _ in each)
    seen = sum(len(t.encode()) - (not bos) for t in TEXTS)
    assert score.metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert score.metrics["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert score.metrics["accuracy"] == sum(hits for _, hits in each) / tokens
    assert score.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / seen, rel=1e-5)
    losses = [n / (len(i) - 1) if len(i) > 1 else None for (n, _), i in zip(each, ids, strict=True)]
    assert score.outcomes["loss"] == [loss and pytest.approx(loss, rel=1e-5) for loss in losses]
    assert score.examples == len(TEXTS)
    assert any("1 texts too short" in note for note in score.notes) is not bos


def test_batches_do_not_matter():
    model = random_llama()
    losses = [
        task(LanguageModel, TEXTS, batch_size=size).score(model, "test").metrics["loss"]
        for size in (1, 3, 4)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("first", [1, 4, 30])
@pytest.mark.parametrize("stride", [1, 3, 7, 10])
def test_windows_predict_every_token_once(first, stride):
    ids = list(range(47))
    predicted = []
    for piece in windows(Span(ids, first), 10, stride):
        assert len(piece.ids) <= 11 and piece.first >= 1
        assert list(piece.ids) == ids[piece.ids[0] : piece.ids[-1] + 1]
        predicted += piece.ids[piece.first :]
    assert predicted == ids[first:]


def test_a_window_sees_only_its_own_tokens():
    model = random_llama()
    text = "abcdefghijklmnopqrstuvwxyz"
    score = task(LanguageModel, [text], context=9).score(model, "test")
    ids = model.tokenizer(text)["input_ids"]
    nats = sum(direct(model, ids[i : i + 10])[0] for i in range(0, len(ids) - 1, 9))
    assert score.metrics["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert any("windows of 9 tokens, 9 apart" in note for note in score.notes)


def test_one_long_text_has_its_windows_as_examples():
    model = random_llama()
    text = "abcdefghijklmnopqrstuvwxyz"
    score = task(LanguageModel, [text], context=9).score(model, "test")
    ids = model.tokenizer(text)["input_ids"]
    pieces = [ids[i : i + 10] for i in range(0, len(ids) - 1, 9)]
    losses = [direct(model, piece)[0] / (len(piece) - 1) for piece in pieces]
    assert score.outcomes["loss"] == pytest.approx(losses, rel=1e-5)
    assert score.outcomes["tokens"] == [len(piece) - 1 for piece in pieces]
    assert score.examples == len(pieces) == 3
    assert "one text: its 3 windows are the examples" in score.notes
    two = task(LanguageModel, [text, text], context=9).score(model, "test")
    assert two.examples == len(two.outcomes["loss"]) == 2


def test_a_smaller_stride_sees_more():
    model = random_llama()
    text = "abcdefghijklmnopqrstuvwxyz"
    ids = model.tokenizer(text)["input_ids"]
    nats, begin = direct(model, ids[:10])[0], 1
    for end in range(11, len(ids) + 1):
        nats += direct(model, ids[begin:end], first=9)[0]
        begin += 1
    score = task(LanguageModel, [text], context=9, stride=1).score(model, "test")
    assert score.metrics["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)


def test_a_prompt_is_seen_and_not_scored():
    model = random_llama()
    record = {"question": "one and one?", "answer": "two"}
    score = task(
        LanguageModel, [record], prompt="{question} ", template="{answer}"
    ).score(model, "test")  # fmt: skip
    ids = model.tokenizer("one and one? two")["input_ids"]
    nats, hits = direct(model, ids, first=len(ids) - 3)
    assert score.metrics["loss"] == pytest.approx(nats / 3, rel=1e-5)
    assert score.metrics["accuracy"] == hits / 3
    assert score.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / 3, rel=1e-5)


def test_a_token_across_the_boundary_belongs_to_the_text():
    class Pairs:
        def __call__(self, text, **_):
            return {"input_ids": [text[i : i + 2] for i in range(0, len(text), 2)]}

    span = joined(Pairs(), "abc", "defg")
    assert span.ids[span.first :] == ["cd", "ef", "g"]


def test_limit_takes_the_first_records():
    model = random_llama()
    some = task(LanguageModel, TEXTS, limit=2).score(model, "test")
    assert (
        some.outcomes["loss"]
        == task(LanguageModel, TEXTS[:2]).score(model, "test").outcomes["loss"]
    )


def test_logits_that_do_not_fit_make_smaller_batches(monkeypatch):
    model = random_llama()
    sizes = []
    model.module.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = task(LanguageModel, TEXTS).score(model, "test").metrics
    monkeypatch.setattr(_likelihood, "_MOST_LOGITS", 2 * 24 * 259)
    small = task(LanguageModel, TEXTS).score(model, "test").metrics
    assert sizes == [4, 2, 2]
    assert small == pytest.approx(whole, rel=1e-6)


def test_what_cannot_be_scored_is_an_error():
    model = random_llama(positions=16)
    with pytest.raises(TaskError, match="stride 9 is longer than context 8"):
        task(LanguageModel, TEXTS, context=8, stride=9).check()
    with pytest.raises(TaskError, match=r"context 32 is more than the 16 positions"):
        task(LanguageModel, TEXTS, context=32).score(model, "test")
    with pytest.raises(TaskError, match="no records"):
        task(LanguageModel, []).score(model, "test")
    with pytest.raises(DataError, match="row 1 has no field 'body'"):
        task(LanguageModel, TEXTS, template="{body}").score(model, "test")
    with pytest.raises(TaskError, match="NaN or infinite"):
        model.module.lm_head.weight.data[5, 5] = float("nan")
        task(LanguageModel, TEXTS).score(model, "test")
    model.tokenizer = None
    with pytest.raises(TaskError, match="has no tokenizer"):
        task(LanguageModel, TEXTS).score(model, "test")


def test_a_real_model_knows_stories_and_not_code(tmp_path):
    model = open_model(stories(tmp_path))
    story = "Once upon a time there was a small dog who wanted to find a friend in the forest."
    code = "def f(x):\n    return [i for i in range(x) if i % 2 == 0]\n"
    loss = [
        task(LanguageModel, [text]).score(model, "test").metrics["loss"] for text in (story, code)
    ]
    assert loss[0] < 2.5
    assert loss[1] > 5
