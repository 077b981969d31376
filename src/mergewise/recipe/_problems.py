"""Places in the document, and the problems found there."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from mergewise.errors import Diagnostic, RecipeError

Severity = Literal["error", "warning"]

MAX_PROBLEMS = 100
MAX_MESSAGE = 500
OVERRIDE = "--set "


@dataclass(frozen=True, order=True)
class Position:
    """A place in a recipe. Lines and columns count from 1."""

    path: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"

    @property
    def from_override(self) -> bool:
        """Whether the value was given by ``--set`` and not by the document."""
        return self.path.startswith(OVERRIDE)


def suggest(word: str, options: Collection[str]) -> str:
    """``; did you mean `x`?`` for the option closest to `word`, or nothing."""
    if len(word) > 64:
        return ""
    word = word.lower().replace("-", "_")
    # letters that changed places are the commonest slip: `modles` is `models`, not `modules`
    swapped = [option for option in options if sorted(option) == sorted(word)]
    close = difflib.get_close_matches(word, swapped or list(options), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line, cut in the middle of nowhere if it is long."""
    text = " ".join(text[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Problems:
    """Collects problems, so that all of them are reported at once.

    A document can be made to have a million problems; only the first hundred are kept.
    """

    def __init__(self, lenient: bool = False) -> None:
        self.lenient = lenient
        self.found: list[Diagnostic] = []
        self.dropped = 0

    def error(
        self, at: Position, message: str, word: str = "", options: Collection[str] = ()
    ) -> None:
        """Report an error; with `word` and `options`, add what was probably meant."""
        self._add(at, message, word, options, "error")

    def warn(
        self, at: Position, message: str, word: str = "", options: Collection[str] = ()
    ) -> None:
        """Report something that is probably not what was wanted, but can be run."""
        self._add(at, message, word, options, "warning")

    def unknown(
        self, at: Position, message: str, word: str = "", options: Collection[str] = ()
    ) -> None:
        """Report an unknown key: an error, or a warning if lenient (never for ``--set``)."""
        report = self.warn if self.lenient and not at.from_override else self.error
        report(at, message, word, options)

    def _add(
        self, at: Position, message: str, word: str, options: Collection[str], severity: Severity
    ) -> None:
        if len(self.found) >= MAX_PROBLEMS and (severity == "warning" or self.failed):
            self.dropped += 1
            return
        text = shorten(message + (suggest(word, options) if word else ""), MAX_MESSAGE)
        self.found.append(Diagnostic(at.path, at.line, at.column, text, severity))

    @property
    def failed(self) -> bool:
        return any(d.severity == "error" for d in self.found)

    def in_order(self) -> list[Diagnostic]:
        """All problems, by place; those of ``--set`` come after those of the document."""

        def place(d: Diagnostic) -> tuple[bool, str, int, int]:
            return (d.path.startswith(OVERRIDE), d.path, d.line, d.column)

        found = sorted(dict.fromkeys(self.found), key=place)
        if self.dropped:
            last = found[-1]
            more = f"and {self.dropped} more problems; correct these first"
            found.append(Diagnostic(last.path, last.line, last.column, more, last.severity))
        return found

    def raise_if_failed(self) -> None:
        """Raise a `RecipeError` with all errors and warnings if there is an error."""
        if self.failed:
            raise RecipeError(self.in_order())


def fail(at: Position, message: str) -> RecipeError:
    """A `RecipeError` of one problem that leaves nothing else to look at."""
    text = shorten(message, MAX_MESSAGE)
    return RecipeError([Diagnostic(at.path, at.line, at.column, text)])
