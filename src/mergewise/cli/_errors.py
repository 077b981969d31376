"""Errors, as people see them, and the exit code each has.

0: done. 1: the run failed. 2: bad usage or a bad recipe. 130: interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from mergewise.cli._output import Output, count
from mergewise.errors import (
    InterruptedMergeError,
    MergewiseError,
    RecipeError,
    TasksFileError,
    UnknownMethodError,
)

OK, FAILED, BAD, INTERRUPTED = 0, 1, 2, 130


def run(call: Callable[[], Any], out: Output) -> int:
    """Run a command and return the exit code; what a command returns is one, if a number."""
    try:
        code = call()
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except BrokenPipeError:
        # the reader has gone, as in `mergewise inspect x | head`; nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (click.ClickException, click.Abort, KeyboardInterrupt, MergewiseError, OSError) as error:
        if out.verbosity > 1:
            traceback.print_exc()
        return _report(error, out)


def _report(error: BaseException, out: Output) -> int:
    if isinstance(error, click.Abort | KeyboardInterrupt | InterruptedMergeError):
        out.say(out.when_interrupted())
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        out.say(error.format_message())
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error, out)
    if isinstance(error, RecipeError | TasksFileError):
        _document(error, out)
        return BAD
    out.error(str(error))
    return BAD if isinstance(error, UnknownMethodError) else FAILED


def _usage(error: click.ClickException, out: Output) -> int:
    out.error(error.format_message().rstrip("."))
    context = getattr(error, "ctx", None)
    if context is not None:
        out.note(f"{context.command_path} --help shows how it is used")
    return error.exit_code


def _document(error: RecipeError | TasksFileError, out: Output) -> None:
    for diagnostic in error.diagnostics:
        out.diagnostic(diagnostic)
    errors = sum(d.severity == "error" for d in error.diagnostics)
    what = "recipe" if isinstance(error, RecipeError) else "tasks file"
    out.error(f"the {what} cannot be run: {count(errors, 'error')}")
