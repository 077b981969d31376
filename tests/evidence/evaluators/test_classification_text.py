"""Text classification: against running each text alone, whatever the batches."""

import gzip
import json

import pytest
import torch
from _classifiers import WORDS, bert, live, task, texts

from mergewise.errors import DataError, TaskError
from mergewise.evidence import evaluate
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators._heads import save_head

KIND = "text_classification"


def alone(model, text, *second):
    """Logits of one text without any padding."""
    with torch.no_grad():
        return model.module(**model.tokenizer(text, *second, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_whole_classifier_equals_each_text_alone_in_the_datas_order(size):
    model, records = live(bert(), words=True), texts()
    score = task(KIND, records, batch_size=size).score(model, "test")
    logits = torch.stack([alone(model, r["text"]) for r in records])
    labels = torch.tensor([r["label"] for r in records])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert score.outcomes["prediction"] == logits.argmax(dim=1).tolist()
    assert len(set(score.outcomes["prediction"])) > 1
    assert score.outcomes["loss"] == pytest.approx(losses.tolist(), rel=1e-5)
    assert score.metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean())
    assert score.examples == len(records) and score.notes == ()


def test_pairs_get_both_texts_and_their_types():
    model, records = live(bert(), words=True), texts()
    for pair in ("second", "{second}"):
        score = task(KIND, records, pair=pair).score(model, "test")
        logits = torch.stack([alone(model, r["text"], r["second"]) for r in records])
        chosen = logits.log_softmax(1)[range(len(records)), [r["label"] for r in records]]
        assert score.outcomes["loss"] == pytest.approx((-chosen).tolist(), rel=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean", "pooler"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_body_with_a_head_pools_real_tokens_only(tmp_path, pool, whole):
    # a whole classifier's own head makes way for the task's
    model, records = live(bert(5 if whole else None), words=True), texts()
    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(3, 16, generator=draw), torch.randn(3, generator=draw)
    save_head(tmp_path / "h.safetensors", weight, bias)
    score = task(KIND, records, tmp_path / "h.safetensors", pool=pool).score(model, "test")
    for record, loss in zip(records, score.outcomes["loss"], strict=True):
        with torch.no_grad():
            out = model.module.base_model(**model.tokenizer(record["text"], return_tensors="pt"))
        hidden = out.last_hidden_state[0]
        feature = {"cls": hidden[0], "mean": hidden.mean(0), "pooler": out.pooler_output[0]}[pool]
        expected = -(feature @ weight.T + bias).log_softmax(0)[record["label"]]
        assert loss == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_options_overrule_what_the_heads_file_says(tmp_path):
    model = live(bert(None), words=True)
    save_head(tmp_path / "h.safetensors", torch.randn(3, 16), scale=3.0)
    plain = task(KIND, texts(), tmp_path / "h.safetensors", scale=1e-6).score(model, "test")
    assert plain.metrics["nll"] == pytest.approx(1.0986, abs=1e-3)
    told = task(KIND, texts(), tmp_path / "h.safetensors", normalise=True, scale=1.0)
    assert max(told.score(model, "test").outcomes["confidence"]) < 0.8  # cosines: e/(e + 2/e)


def test_another_module_gets_ids_and_mask_and_its_features_are_taken_as_they_are(tmp_path):
    class Counts(torch.nn.Module):
        def forward(self, ids, mask):
            return torch.nn.functional.one_hot(ids, 20).mul(mask[..., None]).sum(1).float()

    records = [{"text": f"{w} {w} the", "label": i} for i, w in enumerate(WORDS[1:4])]
    weight = torch.zeros(3, 20)
    for i, word in enumerate(WORDS[1:4]):
        weight[i, 4 + WORDS.index(word)] = 1.0
    save_head(tmp_path / "h.safetensors", weight)
    score = task(KIND, records, tmp_path / "h.safetensors").score(live(Counts(), True), "test")
    assert score.metrics["accuracy"] == 1.0
    assert score.outcomes["confidence"][0] == pytest.approx(7.389 / (7.389 + 2), rel=1e-3)


def test_long_texts_are_cut_and_that_is_said():
    model = live(bert(), words=True)
    records = [{"text": "the " * 50, "label": 0}, {"text": "a", "label": 1}]
    score = task(KIND, records).score(model, "test")
    assert score.notes == ("1 of 2 texts cut to 24 tokens",)
    short = task(KIND, records, max_length=5).score(model, "test")
    expected = -alone(model, "the the the").log_softmax(0)[0]  # [CLS] and [SEP] stay
    assert short.outcomes["loss"][0] == pytest.approx(float(expected), rel=1e-5)


def test_a_decoder_without_a_padding_token_is_read_at_the_last_real_token():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=3,
                        bos_token_id=None, eos_token_id=None, initializer_range=0.5)  # fmt: skip
    model = live(GPT2ForSequenceClassification(config).eval(), words=True)
    assert model.module.config.pad_token_id is None
    score = task(KIND, texts(), batch_size=4).score(model, "test")
    for record, prediction in zip(texts(), score.outcomes["prediction"], strict=True):
        ids = torch.tensor([model.tokenizer(record["text"])["input_ids"]])
        with torch.no_grad():
            assert int(model.module(input_ids=ids).logits.argmax()) == prediction


def test_labels_may_be_names_of_the_task_or_of_the_config():
    names = ["sad", "happy", "angry"]
    records = [r | {"label": names[r["label"]]} for r in texts()]
    plain = task(KIND, texts()).score(live(bert(), words=True), "test")
    for evaluator, model in (
        (task(KIND, records, label_names=names), bert()),
        (task(KIND, records, label_names="sad, happy, angry"), bert()),
        (task(KIND, records), bert(id2label=dict(enumerate(names)))),
    ):
        evaluator.check()
        score = evaluator.score(live(model, words=True), "test")
        assert score.outcomes == plain.outcomes
        assert score.metrics["recall_happy"] == plain.metrics["recall_1"]


@pytest.mark.parametrize("label", [3, -1, "joy"])
def test_a_label_the_model_does_not_have_is_named_with_its_row(label):
    records = [*texts(2), {"text": "a", "label": label}]
    with pytest.raises(DataError, match=rf"row 3: label {label!r} is none of the model's 3"):
        task(KIND, records).score(live(bert(), words=True), "test")


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"text": "a"}, {}, "`label` must be a class"),
        ({"text": "a", "label": 0.5}, {}, "got 0.5"),
        ({"text": "a", "label": [1]}, {}, r"got \[1\]"),
        ({"label": 1}, {}, "row 1 has no text"),
        ({"text": "a", "label": 1}, {"pair": "other"}, "no field 'other'"),
        ({"text": "a", "label": 1}, {"template": "{title}"}, "no field 'title'"),
    ],
)
def test_records_that_do_not_fit_are_found_before_a_model_is_loaded(record, options, message):
    with pytest.raises(DataError, match=message):
        task(KIND, [record], **options).check()


def test_heads_that_do_not_fit_are_found_before_a_model_is_loaded(tmp_path):
    save_head(tmp_path / "h.safetensors", torch.ones(3, 16))
    evaluator = task(KIND, texts(), tmp_path / "h.safetensors", label_names=["a", "b"])
    with pytest.raises(TaskError, match=r"2 label_names, but .* has 3 classes"):
        evaluator.check()


def test_empty_data_is_an_error():
    with pytest.raises(DataError, match="empty"):
        task(KIND, []).check()
    with pytest.raises(DataError, match="no examples"):
        task(KIND, []).score(live(bert(), words=True), "test")


def test_models_that_cannot_do_the_task_say_why(tmp_path):
    with pytest.raises(TaskError, match="no tokenizer"):
        task(KIND, texts()).score(live(bert()), "test")
    with pytest.raises(TaskError, match="is no classifier: BertModel returns no logits"):
        task(KIND, texts()).score(live(bert(None), words=True), "test")
    save_head(tmp_path / "h.safetensors", torch.ones(3, 5))
    with pytest.raises(TaskError, match="takes 5 features, the model gives 16"):
        task(KIND, texts(), tmp_path / "h.safetensors").score(live(bert(None), True), "test")


def test_a_pooler_that_is_not_in_the_checkpoint_is_not_made_up(tmp_path):
    from transformers import BertModel

    from mergewise.evidence.models._live import open_model

    body = BertModel(bert(None).config, add_pooling_layer=False)
    body.save_pretrained(tmp_path / "body")
    save_head(tmp_path / "h.safetensors", torch.ones(3, 16))
    model = open_model(tmp_path / "body", "body")
    model.tokenizer = live(body, words=True).tokenizer
    with pytest.raises(TaskError, match="the checkpoint has no pooler"):
        task(KIND, texts(), tmp_path / "h.safetensors", pool="pooler").score(model, "test")
    task(KIND, texts(), tmp_path / "h.safetensors", pool="mean").score(model, "test")


def test_weights_that_are_not_finite_are_a_failure_not_a_score():
    module = bert()
    module.classifier.bias.data[0] = float("nan")
    with pytest.raises(TaskError, match="NaN or infinity for 11 of 11 examples"):
        task(KIND, texts()).score(live(module, words=True), "test")


def test_dropout_is_off_and_the_callers_mode_is_kept():
    module = bert(hidden_dropout_prob=0.5)
    evaluator = task(KIND, texts())
    expected = evaluator.score(live(module, words=True), "test").outcomes
    module.train()
    assert evaluator.score(live(module, words=True), "test").outcomes == expected
    assert module.training


def test_progress_counts_to_the_end_and_data_is_read_once():
    reads = []

    class Records(list):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    evaluator, seen = task(KIND, Records(texts()), batch_size=4), []
    evaluator.progress = lambda done, total: seen.append((done, total))
    model = live(bert(), words=True)
    first = evaluator.score(model, "test")
    assert seen == [(4, 11), (8, 11), (11, 11)]
    assert evaluator.score(model, "test").outcomes == first.outcomes
    assert len(reads) == 1


def test_another_tokenizer_or_length_is_not_served_from_memory():
    evaluator, model = task(KIND, texts()), live(bert(), words=True)
    first = evaluator.score(model, "test")
    other = live(model.module, words=True)
    other.tokenizer.model_max_length = 3
    assert evaluator.score(other, "test").outcomes != first.outcomes
    assert evaluator.score(model, "test").outcomes == first.outcomes


def test_files_are_read_as_any_other_data(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in texts())
    model = live(bert(), words=True)
    whole = task(KIND, texts()).score(model, "test")
    part = task(KIND, Data(path, rows=(2, 5))).score(model, "test")
    assert part.outcomes["prediction"] == whole.outcomes["prediction"][2:5]


def test_a_heads_width_that_no_tensor_has_is_found_before_a_model_is_loaded(tmp_path):
    bert(None).save_pretrained(tmp_path / "body")
    for width, fits in ((16, True), (7, False)):
        save_head(tmp_path / "head", torch.randn(3, width))
        tasks = {"tasks": [{"name": "t", "kind": KIND, "pool": "mean",
                            "data": texts(), "head": str(tmp_path / "head")}]}  # fmt: skip
        if fits:
            found = evaluate(tmp_path / "body", tasks, cache=False)
            assert "no tokenizer" in found.failures[0][2].message
            continue
        with pytest.raises(TaskError, match="takes 7 features, a width that no tensor of body"):
            evaluate(tmp_path / "body", tasks, cache=False)


def test_a_label_that_is_none_of_the_heads_is_found_before_the_model_runs(tmp_path):
    save_head(tmp_path / "head", torch.randn(2, 16))
    model = live(bert(None), words=True)
    model.module.forward = None
    with pytest.raises(DataError, match="label 2 is none of the model's 2 classes"):
        task(KIND, texts(), tmp_path / "head").score(model, "test")
