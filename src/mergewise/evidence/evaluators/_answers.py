"""Find the answer in a text, and compare answers: numbers as numbers, words as words.

gsm8k, strict           the number after ``####``
last_number, flexible   the last number
text                    the whole text; case, surrounding punctuation and runs of space aside
regex:PATTERN           the first match: its first group, or all of it

The names strict and flexible are those of the GSM8K task of lm-evaluation-harness.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from decimal import Decimal

from mergewise.errors import TaskError

Extract = Callable[[str], str | None]

# a minus sign belongs to the number unless it stands between two operands, as in 5-3
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"(?:(?<![\w)])-)?\$?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_FOUND = re.compile(_NUMBER)
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_REGEX = "regex:"
_NAMES = ("gsm8k", "strict", "last_number", "flexible", "text")


def number(text: str) -> str | None:
    """`text` as a number in one way of writing it: ``1,000`` and ``1000.0`` give ``1000``."""
    plain = text.strip().replace(",", "").replace("$", "")
    if not re.fullmatch(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", plain):
        return None
    value = Decimal(plain)
    return "0" if value == 0 else f"{value.normalize():f}"


def marked_number(text: str) -> str | None:
    """The number after the first ``####``."""
    found = _MARKED.search(_plain_minus(text))
    return number(found.group(1)) if found else None


def last_number(text: str) -> str | None:
    """The last number."""
    found = _FOUND.findall(_plain_minus(text))
    return number(found[-1]) if found else None


def normalised(text: str) -> str | None:
    """Lower case, single spaces, no punctuation around it; None if nothing is left."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(string.punctuation + string.whitespace) or number(words) or None


def extraction(name: str, task: str) -> Extract:
    """The rule called `name`.

    Raises:
        TaskError: if there is none, or its pattern is not a regular expression.
    """
    if name in ("gsm8k", "strict"):
        return marked_number
    if name in ("last_number", "flexible"):
        return last_number
    if name == "text":
        return normalised
    if not name.startswith(_REGEX):
        raise TaskError(
            f"task {task}: extract {name!r}: expected {', '.join(_NAMES)} or {_REGEX}PATTERN"
        )
    try:
        pattern = re.compile(name[len(_REGEX) :])
    except re.error as error:
        raise TaskError(f"task {task}: extract {name!r}: {error}") from None
    return lambda text: _matched(pattern, text)


def right_answer(text: str, extract: Extract) -> str | None:
    """The answer a data set gives, which may be marked like the model's or be bare."""
    found = extract(text)
    if found is None and extract is marked_number:
        return last_number(text)
    return found


def _matched(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    if not found:
        return None
    value = found.group(1 if pattern.groups else 0) or ""
    return number(value) or normalised(value)


def _plain_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")
