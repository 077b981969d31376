"""Answers in the model's own words, compared with the right ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Record
from mergewise.evidence._text import render
from mergewise.evidence.evaluators._answers import Extract, extraction, right_answer
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score
from mergewise.evidence.evaluators._generate import Continuation, Generation, generate
from mergewise.evidence.evaluators._prompts import PROMPT_PARAMS, Prompter, stop_strings
from mergewise.evidence.evaluators._records import LIMIT, first_records, records
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Param


class ExactMatch(Evaluator):
    """Greedy generation; the answer found in it must equal the one found in `gold`.

    Answers are found by the same rule in both. A right answer without the mark ``####`` that
    `gsm8k` looks for, as in MGSM, is taken as its last number. Numbers are compared as numbers.
    """

    name = "generation"
    summary = "exact match of generated answers, such as GSM8K's final number"
    fields = "question and answer, or what `prompt` and `gold` name"
    params = {
        "prompt": Param(str, "{question}\n", "what the model continues"),
        "gold": Param(str, "{answer}", "where the right answer is found"),
        "extract": Param(
            str, "text", "gsm8k (strict) | last_number (flexible) | text | regex:PATTERN"
        ),
        "max_new_tokens": Param(int, 256, "at most as many tokens an answer", ge=1),
        "stop": Param(str, None, "strings that end an answer, with | between them"),
        **PROMPT_PARAMS,
        "batch_size": Param(int, 8, "prompts that run together", ge=1),
        **LIMIT,
    }
    metrics = {
        "exact_match": Metric("max", "share of answers that are right"),
        "answered": Metric("max", "share of texts in which an answer was found"),
    }
    example = """
- name: maths
  kind: generation
  data: gsm8k_test.jsonl.gz
  prompt: "Question: {question}\\nAnswer:"
  extract: gsm8k
  stop: "Question:"
  limit: 200
"""

    def check(self) -> None:
        name = self.task.name
        self._extract()
        Prompter(self.task).check()
        for record in first_records(self.task):
            render(self.task.options.prompt, record, 0)
            self._gold(record, 0)
        if self.task.options.stop is not None and not stop_strings(self.task.options.stop):
            raise TaskError(f"task {name}: stop {self.task.options.stop!r} holds no string")

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        options, name = self.task.options, self.task.name
        rows = records(self.task, split)
        gold = [self._gold(record, row) for row, record in enumerate(rows)]
        prompts = Prompter(self.task).prompts(rows, options.prompt, model.tokenizer, split)
        how = Generation(options.max_new_tokens, stop_strings(options.stop))
        texts = generate(model, prompts, how, options.batch_size, name, self.progress)
        found = [self._extract()(text.text) for text in texts]
        right = [int(one == other) for one, other in zip(found, gold, strict=True)]
        return Score(
            metrics={
                "exact_match": sum(right) / len(right),
                "answered": sum(one is not None for one in found) / len(found),
            },
            outcomes={"correct": right, "prediction": found},
            examples=len(rows),
            seconds=time.perf_counter() - begun,
            notes=generation_notes(texts, options.max_new_tokens),
        )

    def _extract(self) -> Extract:
        return extraction(self.task.options.extract, self.task.name)

    def _gold(self, record: Record, row: int) -> str:
        text = render(self.task.options.gold, record, row)
        found = right_answer(text, self._extract())
        if found is None:
            raise DataError(
                f"task {self.task.name}, row {row + 1}: no answer found by extract "
                f"{self.task.options.extract!r} in {text[-60:]!r}; see `gold` and `extract`"
            )
        return found


def generation_notes(texts: Sequence[Continuation], most: int) -> tuple[str, ...]:
    """What to know of generated texts: those that were cut, and prompts that were."""
    notes = []
    if endless := sum(not text.finished for text in texts):
        notes.append(f"{endless} texts ended at {most} tokens")
    if cut := sum(text.cut for text in texts):
        notes.append(f"{cut} prompts too long, cut at their beginning")
    return tuple(notes)
