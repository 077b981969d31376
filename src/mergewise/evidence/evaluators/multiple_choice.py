"""Multiple choice: the answer a language model finds likeliest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Record
from mergewise.evidence._text import render
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score
from mergewise.evidence.evaluators._likelihood import (
    Likelihood,
    Span,
    joined,
    longest_input,
    score_spans,
    tokenizer_of,
)
from mergewise.evidence.evaluators._prompts import PROMPT_PARAMS, Prompter
from mergewise.evidence.evaluators._records import LIMIT, first_records, records
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Param

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class _Problem:
    choices: tuple[str, ...]
    answer: int


class MultipleChoice(Evaluator):
    """Each choice is put after the prompt and its log probability summed over its tokens.

    Prompt and choice are encoded together; the choice's tokens are those after the common
    beginning of this encoding and of the prompt's own, so that a token across the boundary counts
    for the choice. `accuracy` takes the choice of the largest sum, `accuracy_norm` of the largest
    sum a UTF-8 byte of the choice; the first of equal ones.

    The field named by `choices` is a list of texts, or an object with lists ``text`` and
    ``label`` as in ARC; without such a field ``a|b|c`` gives the same choices to all. The answer
    is a place counted from 0, a letter, a label, or the choice's own text.
    """

    name = "multiple_choice"
    summary = "multiple choice by likelihood"
    fields = "question, choices and answer, or what the options name"
    params = {
        "prompt": Param(str, "{question}", "what comes before each choice, not scored"),
        "choices": Param(str, "choices", "the field of the choices, or the choices: 'no|yes'"),
        "choice": Param(str, " {choice}", "how a choice is written after the prompt"),
        "answer": Param(str, "answer", "the field of the right answer"),
        **PROMPT_PARAMS,
        "batch_size": Param(int, 8, "choices that run together", ge=1),
        **LIMIT,
    }
    metrics = {
        "accuracy": Metric("max", "share of problems whose likeliest choice is right"),
        "accuracy_norm": Metric("max", "the same, by log probability a byte"),
    }
    example = """
- name: facts
  kind: multiple_choice
  data: arc_easy.jsonl
  prompt: "Question: {question}\\nAnswer:"
  answer: answerKey
"""

    def check(self) -> None:
        if "{choice}" not in self.task.options.choice:
            raise TaskError(
                f"task {self.task.name}: choice {self.task.options.choice!r} must contain "
                "'{choice}', where each choice's text goes"
            )
        Prompter(self.task).check()
        for record in first_records(self.task):
            render(self.task.options.prompt, record, 0)
            self._problem(record, 0)

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        options = self.task.options
        rows = records(self.task, split)
        tokenizer = tokenizer_of(model, self.task.name)
        problems = [self._problem(record, row) for row, record in enumerate(rows)]
        prompts = Prompter(self.task).prompts(rows, options.prompt, tokenizer, split)
        spans, cut = self._spans(model, prompts, problems)
        found = iter(score_spans(model, spans, options.batch_size, self.progress))
        likelihoods = [[next(found) for _ in problem.choices] for problem in problems]
        return _score(problems, likelihoods, time.perf_counter() - begun, cut)

    def _spans(
        self, model: LiveModel, prompts: Sequence[str], problems: Sequence[_Problem]
    ) -> tuple[list[Span], int]:
        most, spans, cut = longest_input(model), [], 0
        for prompt, problem in zip(prompts, problems, strict=True):
            for choice in problem.choices:
                text = self.task.options.choice.replace("{choice}", choice)
                span = joined(model.tokenizer, prompt, text)
                short = _fitted(span, most)
                cut += short is not span
                spans.append(short)
        return spans, cut

    def _problem(self, record: Record, row: int) -> _Problem:
        where = f"task {self.task.name}, row {row + 1}"
        texts, labels = _choices(record, self.task.options.choices, where)
        if len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
            raise DataError(f"{where}: at least two choices expected, each a text; got {texts!r}")
        field = self.task.options.answer
        if field not in record:
            raise DataError(f"{where}: no field {field!r}; it has {', '.join(record)}")
        answer = _place(record[field], texts, labels)
        if answer is None:
            raise DataError(
                f"{where}: answer {record[field]!r} is none of the {len(texts)} choices; expected "
                "a place from 0, a letter, a label or the choice's text"
            )
        return _Problem(tuple(texts), answer)


def _choices(record: Record, option: str, where: str) -> tuple[list[Any], list[str]]:
    value = record.get(option)
    if value is None and "|" in option:
        value = option.split("|")
    if isinstance(value, Mapping):
        return list(value.get("text", ())), [str(label) for label in value.get("label", ())]
    if isinstance(value, list | tuple):
        return list(value), []
    raise DataError(
        f"{where}: no list of choices in field {option!r}; it has {', '.join(record)}; name the "
        "field, or write the choices as 'no|yes'"
    )


def _place(answer: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    # a choice's own text comes first: the choices may themselves be digits or letters
    text = str(answer).strip()
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(texts) and not labels else _index(labels, text)
    for names in (labels, texts):
        if text in names:
            return names.index(text)
    if text.isdecimal():
        return int(text) if int(text) < len(texts) else None
    letter = _index(_LETTERS[: len(texts)], text.upper())
    return letter if len(text) == 1 else None


def _index(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _fitted(span: Span, most: int | None) -> Span:
    """The end of a span that is longer than the model can read."""
    extra = len(span.ids) - 1 - most if most is not None else 0
    if extra <= 0:
        return span
    return Span(span.ids[extra:], max(1, span.first - extra))


def _score(
    problems: Sequence[_Problem],
    likelihoods: Sequence[Sequence[Likelihood]],
    seconds: float,
    cut: int,
) -> Score:
    plain = [_first_best([-one.nats for one in row]) for row in likelihoods]
    norm = [
        _first_best([-one.nats / len(c.encode()) for one, c in zip(row, p.choices, strict=True)])
        for row, p in zip(likelihoods, problems, strict=True)
    ]
    right = [int(one == p.answer) for one, p in zip(plain, problems, strict=True)]
    right_norm = [int(one == p.answer) for one, p in zip(norm, problems, strict=True)]
    return Score(
        metrics={
            "accuracy": sum(right) / len(right),
            "accuracy_norm": sum(right_norm) / len(right),
        },
        outcomes={"correct": right, "prediction": plain},
        examples=len(problems),
        seconds=seconds,
        notes=(f"{cut} choices too long, cut at the prompt's beginning",) if cut else (),
    )


def _first_best(values: Sequence[float]) -> int:
    return values.index(max(values))
