"""The `mergewise` command: finds its subcommands, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from mergewise import __version__
from mergewise.cli._errors import run
from mergewise.cli._options import verbosity_options
from mergewise.cli._output import Output
from mergewise.constants import yield_processors

_COMMANDS = (
    "merge",
    "average",
    "plan",
    "check",
    "methods",
    "inspect",
    "evaluate",
    "collect",
    "evidence",
    "guide",
    "guides",
    "transform",
    "transforms",
    "transplant",
    "lora",
    "demo",
    "completion",
)


class _LazyGroup(click.Group):
    """Commands are modules of this package, ``_NAME.py``, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mergewise.cli._{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{_meant(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but with errors and exit codes handled in one place of ours."""
        out = Output(sys.argv[1:] if args is None else args)
        extra = {"obj": out, "windows_expand_args": windows_expand_args, **extra}
        call = partial(super().main, args, "mergewise", complete_var, standalone_mode=False)
        if not standalone_mode:
            return call(**extra)
        sys.exit(run(partial(call, **extra), out))


def _meant(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, _COMMANDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected {', '.join(_COMMANDS)}"


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergewise")
@verbosity_options
def cli() -> None:
    """Merge trained neural networks, as a recipe says.

    Try first: mergewise check RECIPE, mergewise plan RECIPE. Results go to standard output;
    progress, warnings and errors to standard error.
    """


def main() -> None:
    """Entry point of the `mergewise` command."""
    yield_processors()
    cli()
