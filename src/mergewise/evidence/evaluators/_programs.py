"""Layouts of programming problems: what a model is shown, and what its answer is tested by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mergewise.errors import DataError
from mergewise.evidence._data import Record
from mergewise.evidence._text import render

_FENCED = re.compile(r"```[ \t]*[\w+-]*[ \t]*\r?\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """What a kind of record has.

    Attributes:
        needs: its fields.
        prompt: template of the prompt.
        stop: strings that end a program.
    """

    needs: tuple[str, ...]
    prompt: str
    stop: tuple[str, ...]


LAYOUTS: Final = {
    "mbpp": Layout(
        ("text", "test_list"),
        '"""\n{text}\n{tests}\n"""\n',
        ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```"),
    ),
    "humaneval": Layout(
        ("prompt", "test", "entry_point"),
        "{prompt}",
        ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        layout: which of `LAYOUTS`.
        prompt: what the model continues.
        begin: what the program begins with, before the model's text.
        tests: Python that raises an error unless the program is right.
        entry_point: the function that is tested, if the record names it.
    """

    layout: str
    prompt: str
    begin: str
    tests: str
    entry_point: str = ""


def layout_of(name: str) -> Layout:
    """A layout by its name."""
    return LAYOUTS[name]


def problem_of(record: Record, row: int, where: str, prompt: str | None = None) -> Problem:
    """A record as a problem.

    Raises:
        DataError: if it has the fields of neither layout.
    """
    for name, layout in LAYOUTS.items():
        if all(field in record for field in layout.needs):
            return _MAKERS[name](record, row, prompt or layout.prompt, where)
    raise DataError(
        f"{where}: neither MBPP's fields (text, test_list) nor HumanEval's (prompt, test, "
        f"entry_point); it has {', '.join(record)}"
    )


def program_of(problem: Problem, text: str) -> str:
    """The program in what a model wrote: a fenced block, or all of it after the beginning."""
    block = _FENCED.search(text)
    if block is None:
        return problem.begin + text
    code = block.group(1)
    whole = not problem.begin or f"def {problem.entry_point}" in code
    # a block with the whole function still needs the imports of the prompt
    return _imports(problem.begin) + code if whole else problem.begin + code


def _imports(begin: str) -> str:
    lines = [line for line in begin.splitlines() if line.startswith(("import ", "from "))]
    return "".join(f"{line}\n" for line in lines)


def _mbpp(record: Record, row: int, prompt: str, where: str) -> Problem:
    tests = record["test_list"]
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise DataError(f"{where}: test_list must be a list of assertions, got {tests!r:.80}")
    listed = "\n".join(map(str, tests))
    setup = str(record.get("test_setup_code") or "")
    shown = render(prompt, {**record, "tests": listed}, row)
    return Problem("mbpp", shown, "", f"{setup}\n{listed}\n")


def _humaneval(record: Record, row: int, prompt: str, where: str) -> Problem:
    name = str(record["entry_point"]).strip()
    if not name.isidentifier():
        raise DataError(f"{where}: entry_point must be a function's name, got {name!r}")
    tests = f"{record['test']}\ncheck({name})\n"
    return Problem("humaneval", render(prompt, record, row), str(record["prompt"]), tests, name)


_MAKERS = {"mbpp": _mbpp, "humaneval": _humaneval}
