"""`mergewise merge`: run a recipe."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise._units import show_bytes
from mergewise.cli._collecting import in_turn
from mergewise.cli._interrupt import how_to_continue, progress_kept, terminable
from mergewise.cli._lora import tell_extracted
from mergewise.cli._options import (
    F,
    access_options,
    json_option,
    our_command,
    read_device,
    read_folder,
    read_recipe,
    read_size,
    recipe_options,
)
from mergewise.cli._output import Output, count
from mergewise.cli._progress import progress, show_seconds
from mergewise.constants import DEFAULT_SHARD_BYTES

if TYPE_CHECKING:
    from mergewise.engine import MergeResult
    from mergewise.plan import MergePlan
    from mergewise.recipe import Recipe


def run_options(function: F) -> F:
    """Add the options that say how a merge is run."""
    for option in reversed(_RUN):
        function = option(function)
    return function


_NAMED = 10
_RUN: tuple[Callable[[Any], Any], ...] = (
    click.option("--device", default="auto", callback=read_device, help="auto, cpu or cuda:N."),
    click.option(
        "--workers", metavar="N", type=click.IntRange(min=1), help="Threads (one per processor)."
    ),
    click.option("--memory", metavar="SIZE", callback=read_size, help="Most memory, such as 4GB."),
    click.option(
        "--shard-size", metavar="SIZE", callback=read_size, default=str(DEFAULT_SHARD_BYTES),
        help="Most bytes of one file (5GB). Finished files survive an interruption.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what OUT holds."),
    click.option("--restart", is_flag=True, help="Discard an unfinished merge in OUT."),
    click.option(
        "--allow-nonfinite", is_flag=True, help="Go on when an input holds NaN or infinity."
    ),
    click.option(
        "--full-hashes", is_flag=True, help="Record SHA-256 of every file; reads all twice."
    ),
)  # fmt: skip


@our_command(name="merge")
@click.argument("recipe", type=click.Path())
@click.argument("folder", metavar="OUT", type=click.Path(), callback=read_folder)
@run_options
@click.option(
    "--trust-remote-code", is_flag=True, help="Let a guide run code of checkpoints and tasks."
)
@click.option(
    "--stream-inputs",
    is_flag=True,
    help="Fetch files of the Hub when needed and drop them after, for a disk that is too small.",
)
@click.option(
    "--push", "target", metavar="ORG/NAME", help="Upload the result to this model on the Hub."
)
@click.option("--private", is_flag=True, help="With --push: make a new model private.")
@recipe_options
@access_options
@json_option
def command(
    out: Output,
    recipe: str,
    folder: Path,
    overrides: tuple[str, ...],
    lenient: bool,
    as_json: bool,
    trust_remote_code: bool,
    target: str | None,
    private: bool,
    **options: Any,
) -> None:
    """Merge models as RECIPE says, into the folder OUT.

    OUT is an ordinary Hugging Face folder. Interrupted, the same command continues. Prints OUT.
    """
    _check_push(target, private)
    loaded = read_recipe(out, recipe, lenient, overrides)
    if loaded.output.guide is not None:
        loaded = _guided(out, loaded, folder, options["overwrite"], trust_remote_code)
    result, summary = run_recipe(out, loaded, folder, options)
    pushed = {} if target is None else {"pushed": _push(out, result.out, target, private)}
    show_result(out, result, summary | pushed, as_json)


def run_recipe(
    out: Output, loaded: Recipe, folder: Path, options: dict[str, Any]
) -> tuple[MergeResult, dict[str, Any]]:
    """Plan and run a recipe, saying what happens; the result, and the same as plain values."""
    from mergewise.plan import build_plan

    plan = build_plan(loaded)
    _announce(out, plan, folder, options)
    start = time.monotonic()
    result = _run(out, plan, folder, options)
    seconds = time.monotonic() - start
    for warning in result.warnings[len(plan.warnings) :]:
        out.warn(warning)
    resumed = f", {count(result.resumed, 'file')} from before" if result.resumed else ""
    size = show_bytes(result.bytes_written)
    out.note(
        f"wrote {size} in {count(len(result.files), 'file')}{resumed}, {show_seconds(seconds)}"
    )
    if result.streamed:
        came, most = map(show_bytes, result.streamed)
        out.note(f"fetched {came} of inputs, at most {most} here at once")
    return result, _as_dict(result, seconds)


def show_result(out: Output, result: MergeResult, summary: dict[str, Any], as_json: bool) -> None:
    """What goes to standard output: the folder, or one JSON document."""
    if as_json:
        out.json(summary)
        return
    if (made := getattr(result, "adapter", None)) is not None:
        tell_extracted(out, made)
    out.line(str(result.out))


def _check_push(target: str | None, private: bool) -> None:
    """What can be seen before the work: a mistake must not show after hours."""
    from mergewise.checkpoint import check_push

    if target is not None:
        check_push(target)
    elif private:
        raise click.UsageError("--private says how --push makes a model; give --push ORG/NAME")


def _push(out: Output, folder: Path, target: str, private: bool) -> dict[str, str]:
    """Upload the finished folder; if that fails, say that it is here, and how to go on."""
    from mergewise.checkpoint import push
    from mergewise.errors import HubError

    out.when_interrupted = lambda: f"interrupted; the merge is complete in {folder}, not pushed"
    out.note(f"uploading {folder} to {target}")
    try:
        commit = push(folder, target, private=private)
    except HubError as error:
        again = shlex.join(["hf", "upload", target, str(folder)])
        raise HubError(
            f"{error}\nThe merge is complete in {folder}; upload it with\n  {again}"
        ) from None
    out.note(f"pushed to {target}, commit {commit[:12]}")
    return {"model": target, "commit": commit}


def _guided(out: Output, recipe: Recipe, folder: Path, overwrite: bool, trust: bool) -> Recipe:
    """The explicit recipe of one with a guide."""
    from mergewise.guides import follow

    out.when_interrupted = lambda: "interrupted; what was collected is taken up by the next run"
    with terminable(), in_turn(out) as (collected, report):
        found = follow(
            recipe, folder, overwrite=overwrite, trust_remote_code=trust, told=out.note,
            collected=collected, progress=report,
        )  # fmt: skip
    for warning in found.warnings:
        out.warn(warning)
    for note in found.notes:
        out.note(note)
    return found.recipe


def _announce(out: Output, plan: MergePlan, folder: Path, options: dict[str, Any]) -> None:
    from mergewise.engine import choose_workers

    workers = choose_workers(plan, options["workers"], options["memory"])
    methods = ", then ".join(stage.stage.method for stage in plan.stages)
    out.note(f"{methods} of {_some(list(plan.checkpoints))}")
    form = plan.recipe.output.makes
    size = f"an {form.name}" if form else show_bytes(plan.bytes_write)
    out.note(
        f"reads {show_bytes(plan.bytes_read)}, writes {size} "
        f"({count(plan.elements, 'parameter')}) to {folder}, {count(workers, 'worker')}"
    )
    for warning in plan.warnings:
        out.warn(warning)


def _some(models: list[str]) -> str:
    """All of a few; of many the first, the last, and how many there are."""
    if len(models) <= _NAMED:
        return ", ".join(models)
    return f"{len(models)} models, {models[0]} to {models[-1]}"


def _run(out: Output, plan: MergePlan, folder: Path, options: dict[str, Any]) -> MergeResult:
    if plan.recipe.output.makes is not None:
        return _run_form(out, plan, folder, options)
    out.when_interrupted = lambda: how_to_continue(folder, out.arguments)
    kept = progress_kept(folder)
    line = f"continuing the unfinished merge in {folder}: {kept}"
    with terminable(), progress(out) as report:
        from mergewise.engine import merge

        return merge(plan, folder, on_resume=lambda: out.note(line), progress=report, **options)


def _run_form(out: Output, plan: MergePlan, folder: Path, options: dict[str, Any]) -> MergeResult:
    out.when_interrupted = lambda: "interrupted; nothing was written"
    with terminable(), progress(out) as report:
        from mergewise.forms import merge_into_adapter

        return merge_into_adapter(plan, folder, progress=report, **options)


def _as_dict(result: MergeResult, seconds: float) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "files": list(result.files),
        "bytes": result.bytes_written,
        "resumed_files": result.resumed,
        "seconds": round(seconds, 3),
        "warnings": list(result.warnings),
        **({"adapter": made.to_dict()} if (made := getattr(result, "adapter", None)) else {}),
    }
