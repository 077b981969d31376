"""The lab's language family: what is trained on, what is scored, and that they never meet."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.lab import language as family_file
from benchmarks.lab._arithmetic import WORDINGS, questions, sums
from benchmarks.lab._corpus import read_corpus, spread
from benchmarks.lab._llama import IGNORED, Stream, answers, batches, stream, token_loss
from benchmarks.lab._mixes import (
    PLANS,
    asked_in,
    base_mix,
    expert_mixes,
    joint_mix,
    some,
    streams,
)
from benchmarks.lab.language import Language
from mergewise.errors import DataError

SHARED = Path(
    os.environ.get("MERGEWISE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)
QUIET = Console(quiet=True)
FORMULA = re.compile(r"(\d+)([+-])(\d+)")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def _prose(words: str, chance: random.Random, lines: int = 120) -> str:
    picks = words.split()
    return "\n".join(" ".join(chance.choices(picks, k=12)) + "." for _ in range(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shared format, of a few kilobytes, with a language no list of ours knows."""
    folder, chance = tmp_path_factory.mktemp("data"), random.Random(0)
    for name, words in {
        "en_walks": "the sea was cold and a man went over hills to find his dog",
        "en_shakespeare_part": "thou art my lord and I do love thee well good night",
        "sw_kitabu": "mtu huyu alikuwa na kitabu chake katika nyumba ya mji",
        "xx_verhaal": "het huis staat aan de weg en de man loopt naar zijn hond",
        "code_small": "def f(x): return x + 1 import os class A pass for i in range",
    }.items():
        _write(folder / "lm_text" / f"{name}.txt.gz", _prose(words, chance))
    for part, count in (("train", 60), ("test", 40)):
        rows = (
            {"question": f"{part} {i} and {i} more?", "answer": f"{i}+{i}\n#### {2 * i}"}
            for i in range(count)
        )
        _write(folder / "math_code" / f"sums_{part}.jsonl.gz", "\n".join(map(json.dumps, rows)))
    _write(
        folder / "math_code" / "translated_sw.tsv.gz",
        "\n".join(f"{i} na {i}?\t{2 * i}" for i in range(10)),
    )
    programs = (
        {"text": f"Add {i} to a number.", "code": f"def add_{i}(x):\r\n  return x + {i}"}
        for i in range(30)
    )
    _write(folder / "math_code" / "programs.jsonl.gz", "\n".join(map(json.dumps, programs)))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory):
    found = Language(data, tmp_path_factory.mktemp("lab"), "fast", "cpu")
    return found, found.train(0, QUIET)


def test_each_sum_belongs_to_one_part() -> None:
    parts = {part: {s.formula for s in sums(part)} for part in ("train", "validation", "test")}
    assert not parts["train"] & parts["validation"]
    assert not parts["test"] & (parts["train"] | parts["validation"])
    assert sum(map(len, parts.values())) == 2 * 9 * 35, "no carry"
    assert len(parts["validation"]) >= 50 and len(parts["test"]) >= 120


@pytest.mark.parametrize("language", WORDINGS)
def test_the_question_holds_the_formula_and_the_answer_is_right(language: str) -> None:
    for record in questions(language, "test", 200, seed=3):
        left, sign, right = FORMULA.fullmatch(record["formula"]).groups()
        assert re.findall(r"\d+", record["question"])[:2] == [left, right]
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert record["answer"] == f"{left}{sign}{right}={value}"
        assert record["result"] == str(value)


def test_questions_depend_on_the_seed_only() -> None:
    assert questions("sw", "train", 20, 5) == questions("sw", "train", 20, 5)
    assert questions("sw", "train", 20, 5) != questions("sw", "train", 20, 6)


def test_a_folder_is_discovered(data: Path) -> None:
    corpus = read_corpus(data)
    assert set(corpus.skills) == {"prose", "shakespeare", "swahili", "xx", "code", "maths"}
    assert corpus.languages == {"swahili": "sw", "xx": "xx"}
    assert asked_in(corpus, PLANS["fast"]) == "swahili"
    assert set(expert_mixes(corpus, PLANS["fast"])) == {
        "maths", "code", "swahili", "xx", "shakespeare",
    }  # fmt: skip


def test_no_scored_text_is_trained_on(data: Path) -> None:
    corpus = read_corpus(data)
    for skill in (*corpus.skills.values(), corpus.described):
        kept = set(skill.train)
        validation = {json.dumps(record) for record in skill.validation}
        test = {json.dumps(record) for record in skill.test}
        assert validation and test and not validation & test
        for record in (*skill.validation, *skill.test):
            assert not kept & set(record.values())


def test_questions_that_were_translated_are_not_scored_in_english(data: Path) -> None:
    maths = read_corpus(data).skills["maths"]
    numbers = [
        int(re.search(r"test (\d+)", record["text"])[1])
        for record in (*maths.validation, *maths.test)
    ]
    assert numbers == list(range(10, 40))
    assert all("Question: train" in text for text in maths.train)


def test_programs_are_trained_on_without_their_descriptions(data: Path) -> None:
    described = read_corpus(data).described
    assert len(described.train) == 21
    assert not any("Add" in text or "\r" in text for text in described.train)
    assert described.test[0]["description"].startswith("Add")


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lm_text/en_"):
        Language(tmp_path, tmp_path / "lab", "fast", "cpu")
    with pytest.raises(DataError, match="DATA=folder"):
        Language(None, tmp_path / "lab", "fast", "cpu")


def test_a_text_of_a_few_lines_is_left_out(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    _write(tmp_path / "data" / "lm_text" / "yy_short.txt.gz", "een regel")
    assert "yy" not in read_corpus(tmp_path / "data").skills


def test_mixtures_are_shares(data: Path) -> None:
    corpus, plan = read_corpus(data), PLANS["cpu"]
    base, experts = base_mix(corpus, plan), expert_mixes(corpus, plan)
    for mix in (base, *experts.values(), joint_mix(experts)):
        assert sum(mix.values()) == pytest.approx(1)
    assert base["prose"] == max(base.values()) and set(corpus.skills) < set(base)
    assert experts["xx"]["xx"] == pytest.approx(plan.own + (1 - plan.own) * base["xx"])


def test_spread_and_some_reach_the_end() -> None:
    rows = [{"text": str(i)} for i in range(100)]
    assert [r["text"] for r in spread(rows, 4)] == ["0", "25", "50", "75"]
    assert spread(rows, 200) == rows
    few = some(["abcde"] * 50 + ["fghij"] * 50, 100)
    assert 90 <= sum(map(len, few)) <= 100 and {"abcde", "fghij"} == set(few)


def test_windows_pair_each_token_with_the_next() -> None:
    ids = torch.arange(50)
    made = {"a": Stream(ids, ids % 7 != 0)}
    inputs, targets = next(batches(made, {"a": 1, "b": 0}, 4, 10, seed=0))
    assert inputs.shape == targets.shape == (4, 10)
    learned = targets != IGNORED
    assert torch.equal(targets[learned], (inputs + 1)[learned])
    assert torch.equal(~learned, (inputs + 1) % 7 == 0)


def test_a_stream_shorter_than_a_window_is_repeated() -> None:
    made = {"a": Stream(torch.tensor([1, 2, 3]), torch.tensor([True] * 3))}
    inputs, targets = next(batches(made, {"a": 1.0}, 2, 8, seed=0))
    assert torch.equal(inputs % 3 + 1, targets)


def test_digits_are_tokens_and_every_record_is_between_end_marks(trained) -> None:
    tokenizer = trained[0].tokenizer
    assert len(tokenizer("4096", add_special_tokens=False)["input_ids"]) == 4
    made = stream(tokenizer, ["a 12", "b"])
    first = tokenizer("a 12")["input_ids"]
    assert made.ids.tolist() == [*first, *tokenizer("b")["input_ids"], tokenizer.eos_token_id]
    assert made.learned.tolist() == [False] + [True] * (len(made.ids) - 1)


def test_only_answers_are_learned_and_an_unfinished_one_teaches_no_end(trained) -> None:
    tokenizer = trained[0].tokenizer
    pairs = [("Question: 1?", " 23"), ("4", "=5")]
    whole, part = (answers(tokenizer, pairs, unfinished=u) for u in (False, True))
    assert torch.equal(whole.ids, part.ids)
    assert tokenizer.decode(whole.ids[whole.learned], skip_special_tokens=True) == " 23=5"
    end = whole.ids == tokenizer.eos_token_id
    assert whole.learned[end].tolist() == [False, True, True]
    assert torch.equal(part.learned, whole.learned & ~end)


def test_every_window_counts_the_same(trained) -> None:
    found, models = trained
    module = found.live(models.base, "base").module
    inputs = torch.randint(0, 300, (2, 8))
    targets = torch.randint(0, 300, (2, 8))
    targets[1, 1:] = IGNORED
    with torch.inference_mode():
        loss = token_loss(module, (inputs, targets))
        logs = module(input_ids=inputs).logits.log_softmax(-1)
    taken = -logs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(loss, (taken[0].mean() + taken[1, 0]) / 2, atol=1e-5)


def test_no_stream_holds_a_scored_sum_and_only_the_maths_expert_sees_results(trained) -> None:
    found = trained[0]
    held = {s.formula for part in ("validation", "test") for s in sums(part)}
    made = streams(found.corpus, found.plan, found.tokenizer)
    for name in ("formulas", "sums", "formulas in swahili"):
        text = found.tokenizer.decode(made[name].ids)
        formulas = {match.group() for match in FORMULA.finditer(text)}
        assert len(formulas) > 50, name
        assert not formulas & held
        assert ("=" in text) == (name == "sums")
        assert [e for e, mix in found.experts.items() if mix.get("sums")] == ["maths"]
    assert "sums" not in found.settings()["base"]


def test_models_fit_each_other_and_differ(trained) -> None:
    found, models = trained
    assert set(models.experts) == set(found.experts) and models.joint is not None
    for state in (*models.experts.values(), models.joint):
        assert {n: t.shape for n, t in state.items()} == {
            n: t.shape for n, t in models.base.items()
        }
        assert not torch.equal(state["lm_head.weight"], models.base["lm_head.weight"])


def test_training_lowers_the_loss_and_every_task_is_scored(trained) -> None:
    found, models = trained
    tasks = {task.name: task for task in found.tasks(0)}
    assert [t.owner for t in tasks.values()] == [
        "maths", "maths", "code", "swahili", "xx", "shakespeare", None, None, None, None,
    ]  # fmt: skip
    untrained = {name: torch.randn(t.shape) * 0.05 for name, t in models.base.items()}
    scores = {
        name: {
            state_name: task.evaluator.score(found.live(state, state_name), "validation").metrics
            for state_name, state in {"base": models.base, "none": untrained}.items()
        }
        for name, task in tasks.items()
    }
    assert scores["prose"]["base"]["loss"] < scores["prose"]["none"]["loss"] - 0.2
    for name, task in tasks.items():
        assert task.best == ("max" if task.metric == "exact_match" else "min"), name
        assert task.metric in scores[name]["base"]


def test_trained_models_are_read_back(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    found, models = trained
    again = Language(found.data, found.folder, "fast", "cpu")
    monkeypatch.setattr(family_file, "train", _not_again)
    back = again.train(0, QUIET)
    assert torch.equal(
        back.experts["maths"]["lm_head.weight"], models.experts["maths"]["lm_head.weight"]
    )
    with pytest.raises(KeyboardInterrupt):
        again.train(1, QUIET)
    assert not (again.home(1) / "base").exists(), "nothing half-trained is kept"


def test_another_schedule_or_seed_is_another_model(trained, data: Path) -> None:
    found = trained[0]
    assert found.fingerprint(0) != found.fingerprint(1)
    other = Language(data, found.folder, "cpu", "cpu")
    assert found.fingerprint(0) != other.fingerprint(0)
    json.dumps(found.settings())


def _not_again(*_: object, **__: object) -> float:
    raise KeyboardInterrupt


@pytest.mark.skipif(not (SHARED / "lm_text").is_dir(), reason="no shared data")
def test_the_shared_data_give_the_experts_and_targets(tmp_path: Path) -> None:
    found = Language(SHARED, tmp_path, "fast", "cpu")
    names = [task.name for task in found.tasks(0)]
    assert set(found.experts) == {"maths", "code", "german", "swahili", "shakespeare"}
    assert {"maths in swahili", "sums in swahili", "code from prose", "prose"} < set(names)
    assert any("french, spanish" in note for note in found.notes())
