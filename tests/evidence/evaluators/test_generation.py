"""Generated answers: what models continue, and what counts as right."""

import gzip
import json

import pytest
import torch
from real_models import shared, stories
from small_language import parrot, random_llama, task

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators._generate import Generation, generate
from mergewise.evidence.evaluators.generation import ExactMatch
from mergewise.evidence.models._live import LiveModel, open_model

PROMPTS = ["Once", "a", "The quick brown fox jumps over", "", "12 + 13 =", "def f(x):\n   "]


def by_hand(model, ids, most):
    """Greedy, one prompt, no cache, no padding."""
    begin = len(ids)
    with torch.inference_mode():
        while len(ids) < begin + most:
            token = int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
    return model.tokenizer.decode(ids[begin:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_greedy_equals_one_by_one_without_cache_or_padding(batch_size):
    model = random_llama(3)
    texts = generate(model, PROMPTS, Generation(12), batch_size, "t")
    assert [t.text for t in texts] == [
        by_hand(model, model.tokenizer(prompt)["input_ids"], 12) for prompt in PROMPTS
    ]


def test_the_checkpoints_own_generation_settings_are_not_used():
    model = random_llama(3)
    plain = generate(model, PROMPTS, Generation(12), 4, "t")
    model.module.generation_config.update(repetition_penalty=9.0, do_sample=True, max_length=5)
    assert generate(model, PROMPTS, Generation(12), 4, "t") == plain


def test_drawing_has_a_seed_and_does_not_depend_on_the_batch():
    model = random_llama(3)
    how = Generation(10, temperature=1.0, seed=5)
    one = generate(model, PROMPTS, how, 1, "t")
    assert generate(model, PROMPTS, how, 6, "t") == one
    assert generate(model, PROMPTS, Generation(10, temperature=1.0, seed=6), 6, "t") != one
    twice = generate(model, ["a", "a"], how, 2, "t")
    assert twice[0] != twice[1]


def test_drawing_follows_the_softmax():
    model = random_llama(3)
    n = 4000
    texts = generate(model, ["a"] * n, Generation(1, temperature=1.0), n, "t")
    ids = torch.tensor([model.tokenizer("a")["input_ids"]])
    with torch.inference_mode():
        p = model.module(input_ids=ids).logits[0, -1].softmax(-1)
    best = int(p[3:].argmax()) + 3
    share = sum(t.text == model.tokenizer.decode([best]) for t in texts) / n
    assert share == pytest.approx(float(p[best]), abs=4 * float(p[best] / n) ** 0.5)


def test_stop_strings_end_a_text_and_are_cut_off():
    model = random_llama(3)
    whole = generate(model, PROMPTS, Generation(12), 4, "t")
    stop = whole[2].text[4:6]
    cut = generate(model, PROMPTS, Generation(12, stop=(stop,)), 4, "t")
    for full, part in zip(whole, cut, strict=True):
        at = full.text.find(stop)
        assert part.text == (full.text if at < 0 else full.text[:at])
        assert part.finished or at < 0


def test_a_stop_string_saves_steps():
    model = random_llama(3)
    steps = []
    model.module.register_forward_hook(lambda *_: steps.append(1))
    stop = generate(model, PROMPTS[2:3], Generation(12), 1, "t")[0].text[:1]
    steps.clear()
    generate(model, PROMPTS[2:3], Generation(12, stop=(stop,)), 1, "t")
    assert len(steps) == 1


def test_a_long_prompt_loses_its_beginning():
    model = random_llama(3, positions=32)
    text = generate(model, ["x" * 30 + "abc"], Generation(8), 1, "t")[0]
    assert text.cut
    assert text.text == by_hand(model, model.tokenizer("x" * 30 + "abc")["input_ids"][-24:], 8)
    with pytest.raises(TaskError, match="max_new_tokens 32 leaves no room"):
        generate(model, ["x"], Generation(32), 1, "t")


def test_a_module_that_cannot_generate_is_an_error():
    model = LiveModel("linear", torch.nn.Linear(2, 2), random_llama().tokenizer)
    with pytest.raises(TaskError, match="linear cannot generate"):
        generate(model, ["a"], Generation(4), 1, "t")


PROBLEMS = [
    {"question": "two and two", "answer": "so <<2+2=4>>4\n#### 4"},
    {"question": "a thousand", "answer": "#### 1,000"},
    {"question": "nothing", "answer": "#### 0"},
]
SAID = {"two and two\n": "easy\n#### 4", "a thousand\n": "#### 1000.0\nQ: #### 3", "nothing\n": "?"}


def test_exact_match():
    score = task(ExactMatch, PROBLEMS, extract="gsm8k").score(parrot(SAID.__getitem__), "test")
    assert score.metrics == {"exact_match": pytest.approx(2 / 3), "answered": pytest.approx(2 / 3)}
    assert score.outcomes == {"correct": [1, 1, 0], "prediction": ["4", "1000", None]}
    assert score.examples == 3


def test_what_comes_after_a_stop_string_does_not_count():
    flexible = task(ExactMatch, PROBLEMS, extract="flexible")
    assert flexible.score(parrot(SAID.__getitem__), "test").outcomes["correct"] == [1, 0, 0]
    stopped = task(ExactMatch, PROBLEMS, extract="flexible", stop="Question:|Q:")
    assert stopped.score(parrot(SAID.__getitem__), "test").outcomes["correct"] == [1, 1, 0]


def test_too_few_tokens_are_noted():
    score = task(ExactMatch, PROBLEMS, max_new_tokens=3).score(parrot(SAID.__getitem__), "test")
    assert "2 texts ended at 3 tokens" in score.notes


def test_solved_examples_come_before_the_prompt():
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return "#### 4"

    data = {"test": Data(PROBLEMS[:1]), "train": Data(PROBLEMS[1:])}
    options = {"prefix": "Solve.\n", "shots": 2, "shot": "{question}: {answer}\n"}
    evaluator = task(ExactMatch, data, extract="gsm8k", **options)
    evaluator.check()
    assert evaluator.score(parrot(answer), "test").metrics["exact_match"] == 1
    assert asked == ["Solve.\na thousand: #### 1,000\nnothing: #### 0\ntwo and two\n"]
    first = task(ExactMatch, data, extract="gsm8k", limit=1, **options)
    assert first.score(parrot(answer), "test").examples == 1
    assert asked[1] == asked[0]
    with pytest.raises(TaskError, match="3 shots wanted, but split 'train' has 2"):
        task(ExactMatch, data, extract="gsm8k", shots=3).check()
    with pytest.raises(TaskError, match="from the split 'test' that is scored"):
        task(ExactMatch, data, shots=1, shots_split="test").score(parrot(answer), "test")


def test_chat_templates():
    asked = []
    model = parrot(lambda prompt: asked.append(prompt) or "#### 4")
    with pytest.raises(TaskError, match="no chat template"):
        task(ExactMatch, PROBLEMS, chat=True).score(model, "test")
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    task(ExactMatch, PROBLEMS[:1], chat=True).score(model, "test")
    assert asked == ["[user] two and two\n[model]"]


def test_checks_before_a_model_is_loaded():
    task(ExactMatch, PROBLEMS, extract="gsm8k").check()
    with pytest.raises(DataError, match=r"row 1 has no field 'problem'"):
        task(ExactMatch, PROBLEMS, prompt="{problem}").check()
    with pytest.raises(DataError, match=r"row 1: no answer found by extract 'last_number'"):
        task(ExactMatch, PROBLEMS, gold="{question}", extract="last_number").check()
    with pytest.raises(TaskError, match="extract 'nothing'"):
        task(ExactMatch, PROBLEMS, extract="nothing").check()
    with pytest.raises(TaskError, match=r"stop '\|' holds no string"):
        task(ExactMatch, PROBLEMS, stop="|").check()


def test_every_answer_of_gsm8k_and_mgsm_is_found():
    with gzip.open(shared("math_code", "gsm8k_test.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    truth = {row["question"] + "\n": row["answer"] for row in rows}
    evaluator = task(ExactMatch, rows, extract="gsm8k", max_new_tokens=4000, batch_size=64)
    assert evaluator.score(parrot(truth.__getitem__), "test").metrics["exact_match"] == 1
    mgsm = Data(shared("math_code", "mgsm_en.tsv.gz"), columns=("question", "answer"))
    evaluator = task(ExactMatch, {"test": mgsm}, extract="gsm8k", max_new_tokens=4000)
    english = {key.replace("’", "'"): value for key, value in truth.items()}
    score = evaluator.score(
        parrot(lambda prompt: truth.get(prompt) or english.get(prompt, "")), "test"
    )
    known = [q for q in mgsm if q["question"] + "\n" in truth]
    assert sum(score.outcomes["correct"]) >= len(known) > 200


def test_a_real_model_goes_on_with_a_story(tmp_path):
    model = open_model(stories(tmp_path))
    rows = [{"question": "Once upon a time, there was a little girl named", "answer": "Lily"}]
    score = task(
        ExactMatch, rows, prompt="{question}", max_new_tokens=20, stop=". "
    ).score(model, "test")  # fmt: skip
    assert score.metrics["exact_match"] == 1
