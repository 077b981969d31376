"""Prompts: a leading text, solved examples, a chat template."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mergewise.errors import TaskError
from mergewise.evidence._data import Record
from mergewise.evidence._text import render
from mergewise.evidence.evaluators._base import Task
from mergewise.methods import Param

PROMPT_PARAMS: Final[Mapping[str, Param]] = {
    "prefix": Param(str, "", "text before everything"),
    "shots": Param(int, 0, "solved examples before each prompt", ge=0),
    "shots_split": Param(str, "train", "the split whose first records they are"),
    "shot": Param(str, "{question}\n{answer}\n\n", "a solved example"),
    "chat": Param(bool, False, "put the prompt through the model's chat template"),
}


class Prompter:
    """Makes a task's prompts; its options are `PROMPT_PARAMS`."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def check(self) -> None:
        """Find that solved examples are missing.

        Raises:
            TaskError: naming the split that has too few.
        """
        self._prefix()

    def prompts(
        self, rows: Sequence[Record], template: str, tokenizer: Any, split: str
    ) -> list[str]:
        """The prompt of each record.

        Raises:
            DataError: if a record lacks a field of `template`.
            TaskError: for a chat with a tokenizer that knows no chat template, and for solved
                examples from the split that is to be solved.
        """
        if self.task.options.shots and self.task.options.shots_split == split:
            raise TaskError(
                f"task {self.task.name}: the solved examples would come from the split {split!r} "
                "that is scored; name another as `shots_split`"
            )
        prefix = self._prefix()
        texts = [prefix + render(template, record, row) for row, record in enumerate(rows)]
        return [self._chat(text, tokenizer) for text in texts] if self.task.options.chat else texts

    def _prefix(self) -> str:
        options = self.task.options
        if not options.shots:
            return str(options.prefix)
        data = self.task.split(options.shots_split)
        shots = list(itertools.islice(data, options.shots))
        if len(shots) < options.shots:
            raise TaskError(
                f"task {self.task.name}: {options.shots} shots wanted, but split "
                f"{options.shots_split!r} has {len(shots)} records"
            )
        solved = (render(options.shot, record, row) for row, record in enumerate(shots))
        return str(options.prefix) + "".join(solved)

    def _chat(self, text: str, tokenizer: Any) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise TaskError(
                f"task {self.task.name}: chat is on, but the model has no chat template; "
                "leave out `chat`"
            )
        message = [{"role": "user", "content": text}]
        chat = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        # templates write the beginning-of-text token, and so do most tokenizers
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        return str(chat.removeprefix(tokenizer.bos_token) if begins else chat)


def stop_strings(option: str | None) -> tuple[str, ...]:
    """The parts of an option between ``|``, but not empty ones."""
    return tuple(part for part in (option or "").split("|") if part)
