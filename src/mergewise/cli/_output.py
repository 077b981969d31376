"""Where everything printed goes: data to standard output, all else to standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from mergewise.report.text import clean, count

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mergewise.errors import Diagnostic

__all__ = ["Output", "clean", "count"]

_UNLIMITED = 10_000
_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}


class Output:
    """One command's output.

    Attributes:
        arguments: what the user typed after ``mergewise``.
        verbosity: -1 for ``-q``, 1 for ``-v``, 2 for ``-vv``.
        when_interrupted: what to say on Ctrl-C.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = tuple(arguments)
        self.verbosity = 0
        self.when_interrupted: Callable[[], str] = lambda: "interrupted"

    @property
    def quiet(self) -> bool:
        return self.verbosity < 0

    def console(self, stderr: bool = False) -> Console:
        """A rich console; a pipe gets whole lines, whatever their length."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        wide = not stream.isatty() and "COLUMNS" not in os.environ
        return Console(
            stderr=stderr,
            width=_UNLIMITED if wide else None,
            markup=False,
            highlight=False,
            emoji=False,
            quiet=stderr and self.quiet,
        )

    def data(self, *renderables: RenderableType) -> None:
        """Print what was asked for."""
        console = self.console()
        with console.capture() as capture:
            for renderable in renderables:
                console.print(renderable)
        lines = (line.rstrip() for line in capture.get().rstrip().split("\n"))
        click.echo("\n".join(lines), color=True)

    def line(self, text: str) -> None:
        """One line of plain data, such as a path."""
        click.echo(clean(text))

    def json(self, value: Any) -> None:
        """Print one JSON document."""
        click.echo(json.dumps(value, indent=2))

    def note(self, text: str) -> None:
        """Say what is going on, or what to do next; not with ``-q``."""
        if not self.quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Say something that must be heard."""
        click.echo(_clean_lines(text), err=True)

    def warn(self, text: str) -> None:
        """Warn; not with ``-q``."""
        if not self.quiet:
            self._label("warning", "yellow", text)

    def error(self, text: str) -> None:
        """Say why it failed; always."""
        self._label("error", "red", text)

    def diagnostic(self, diagnostic: Diagnostic, err: bool = True) -> None:
        """One line ``file:line:col: message``."""
        click.echo(clean(str(diagnostic)), err=err)

    def _label(self, word: str, colour: str, text: str) -> None:
        label = click.style(f"{word}:", fg=colour, bold=True) if _coloured() else f"{word}:"
        click.echo(f"{label} {_clean_lines(text)}", err=True, color=_coloured())


def _clean_lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))


def _coloured() -> bool:
    """By the customs of https://no-color.org and https://force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Handler(logging.Handler):
    """Log records of the library, as notes."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        click.echo(clean(text), err=True)
        if record.exc_info and self._out.verbosity > 1:
            click.echo(logging.Formatter().formatException(record.exc_info), err=True)


def attach_logging(out: Output) -> Callable[[], None]:
    """Show the library's log records at the level of `out`; returns what undoes it."""
    logger = logging.getLogger("mergewise")
    handler, before = _Handler(out), logger.level
    logger.addHandler(handler)
    logger.setLevel(_LEVELS.get(out.verbosity, logging.DEBUG))

    def detach() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    return detach
