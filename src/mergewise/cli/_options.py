"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from mergewise._units import parse_bytes
from mergewise.cli._output import Output, attach_logging
from mergewise.errors import MergewiseError

if TYPE_CHECKING:
    from pathlib import Path

    from mergewise.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])


def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes a number of bytes, such as ``5GB``."""
    if value is None:
        return None
    try:
        return parse_bytes(value)
    except MergewiseError as error:
        raise click.BadParameter(str(error)) from None


def read_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Callback of ``--device``; whether it exists is seen when torch is loaded."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        return value
    raise click.BadParameter(f"{value!r} is no device; expected auto, cpu, cuda or cuda:N")


def read_folder(ctx: click.Context, param: click.Parameter, value: str) -> Path:
    """Callback of OUT; an empty one, as of an unset variable, would be the current folder."""
    from pathlib import Path

    if not value:
        raise click.BadParameter("it is empty; give a folder for the output")
    return Path(value)


def output_of(ctx: click.Context) -> Output:
    """The output of the running command."""
    out = ctx.find_object(Output)
    if out is None:
        out = ctx.obj = Output()
    return out


def our_command(**options: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose function gets an `Output` first, with ``-q`` and ``-v``."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def called(**values: Any) -> Any:
            ctx = click.get_current_context()
            out = output_of(ctx)
            ctx.call_on_close(attach_logging(out))
            return function(out, **values)

        made: click.Command = click.command(**options)(verbosity_options(called))
        return made

    return decorate


def verbosity_options(function: F) -> F:
    """Add ``-q`` and ``-v``."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_quiet,
        help="Errors and results only.",
    )  # fmt: skip
    verbose = click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_verbose,
        help="Say more; -vv shows where errors come from.",
    )  # fmt: skip
    return quiet(verbose(function))


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        output_of(ctx).verbosity = -1


def _verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    if value:
        output_of(ctx).verbosity = value


def recipe_options(function: F) -> F:
    """Add ``--set`` and ``--lenient``."""
    override = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE",
        help="Change the recipe, such as --set parameters.t=0.3; may be repeated.",
    )  # fmt: skip
    lenient = click.option(
        "--lenient", is_flag=True, help="Take unknown keys as warnings, for old recipes."
    )
    return override(lenient(function))


def access_options(function: F) -> F:
    """Add ``--allow-pickle``, ``--dequantize``, ``--variant``: what is opened where asked for.

    What such a command downloads from the Hub is shown.
    """
    pickle = click.option(
        "--allow-pickle", is_flag=True, expose_value=False, callback=_allows("pickle"),
        help="Read PyTorch files (.bin, .pt, .ckpt), their weights only; nothing in them is run.",
    )  # fmt: skip
    dequantize = click.option(
        "--dequantize", is_flag=True, expose_value=False, callback=_allows("dequantize"),
        help="Read quantised weights as the floating-point numbers they stand for.",
    )  # fmt: skip
    variant = click.option(
        "--variant", metavar="NAME", expose_value=False, callback=_allows("variant"),
        help="Of a diffusers model's files in variants, read this one, such as fp16.",
    )  # fmt: skip
    return pickle(dequantize(variant(_shows_downloads(function))))


def _shows_downloads(function: F) -> F:
    @functools.wraps(function)
    def called(out: Output, *given: Any, **options: Any) -> Any:
        from mergewise.cli._downloading import downloads_shown

        with downloads_shown(out):
            return function(out, *given, **options)

    return cast(F, called)


def _allows(kind: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            from mergewise.checkpoint import allow

            given: dict[str, Any] = {kind: value}
            ctx.with_resource(allow(**given))

    return callback


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def read_recipe(out: Output, path: str, lenient: bool, overrides: tuple[str, ...]) -> Recipe:
    """Load a recipe, its warnings shown.

    Raises:
        RecipeError: with every problem.
    """
    from pathlib import Path

    from mergewise.recipe import load_with_warnings

    recipe, warnings = load_with_warnings(Path(path), lenient=lenient, overrides=overrides)
    if not out.quiet:
        for diagnostic in warnings:
            out.diagnostic(diagnostic)
    return recipe
