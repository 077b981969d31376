"""The language family's tasks: losses on held-out text, and sums by exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lab._arithmetic import ENGLISH, WORDINGS, questions
from benchmarks.lab._corpus import CODE, Corpus, Skill, spread
from benchmarks.lab._family import LabTask
from benchmarks.lab._mixes import MATHS, PROSE, Plan, asked_in
from mergewise.evidence._data import Data
from mergewise.evidence.evaluators import get_evaluator
from mergewise.evidence.evaluators._base import Evaluator, Task
from mergewise.methods import Settings

SEED = 1
"""Of the wordings of scored sums."""
ANSWER_TOKENS = 12
"""`` 12+7=19`` and an end mark take nine."""


def columns(corpus: Corpus, plan: Plan, experts: Sequence[str]) -> list[LabTask]:
    """Every task: a loss for each expert, sums, then the held-out targets."""
    found = [LabTask(name, _loss(name, corpus.skills[name], plan)) for name in experts]
    if MATHS in experts:
        found.insert(1, LabTask("sums", _sums("sums", ENGLISH, plan), of=MATHS))
    if asked := asked_in(corpus, plan):
        found += _foreign(corpus, plan, asked)
    if CODE in experts and corpus.described.test:
        found.append(LabTask("code from prose", _described(corpus.described, plan), expert=False))
    return [*found, LabTask(PROSE, _loss(PROSE, corpus.skills[PROSE], plan), expert=False)]


def _foreign(corpus: Corpus, plan: Plan, asked: str) -> list[LabTask]:
    code = corpus.languages[asked]
    found = []
    if code in corpus.translated:
        first, second = WORDINGS[code].frame
        template = f"{first} {{question}}\n{second} {{answer}}"
        maths = _loss(f"maths in {asked}", corpus.translated[code], plan, template=template)
        found.append(LabTask(maths.task.name, maths, expert=False))
    sums = _sums(f"sums in {asked}", code, plan)
    return [*found, LabTask(sums.task.name, sums, expert=False)]


def _loss(name: str, skill: Skill, plan: Plan, **options: Any) -> Evaluator:
    records = {
        "validation": spread(skill.validation, plan.validation),
        "test": spread(skill.test, plan.test),
    }
    return _evaluator("language_model", name, records, context=plan.shape.context, **options)


def _described(skill: Skill, plan: Plan) -> Evaluator:
    return _loss("code from prose", skill, plan, prompt="{description}\n", template="{code}")


def _sums(name: str, language: str, plan: Plan) -> Evaluator:
    records = {
        "validation": questions(language, "validation", plan.validation_sums, SEED),
        "test": questions(language, "test", plan.test_sums, SEED),
    }
    return _evaluator(
        "generation", name, records, prompt=WORDINGS[language].prompt, gold="{result}",
        extract="last_number", max_new_tokens=ANSWER_TOKENS, stop="\n", batch_size=64,
    )  # fmt: skip


def _evaluator(kind: str, name: str, records: dict[str, Any], **options: Any) -> Evaluator:
    """An evaluator with `options`, and defaults for the rest."""
    found = get_evaluator(kind)
    values = {key: param.default for key, param in found.params.items()} | options
    data = {split: Data(rows) for split, rows in records.items()}
    return found(Task(name, data, Settings(values)))
