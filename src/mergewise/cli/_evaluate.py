"""`mergewise evaluate`: scores of checkpoints on tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise.cli._errors import FAILED, OK
from mergewise.cli._interrupt import terminable
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_device,
)
from mergewise.cli._output import Output, count
from mergewise.cli._progress import show_seconds
from mergewise.cli._steps import steps
from mergewise.errors import OutputError

if TYPE_CHECKING:
    from mergewise.evidence import Evaluation, Step, Tasks

_DTYPES = ("bfloat16", "float16", "float32", "float64")


def _maybe_device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else read_device(ctx, param, value)


def _named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r}: NAME=PATH expected, such as maths=models/maths")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = path
    return found


@our_command(name="evaluate")
@click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, type=click.Path())
@click.option("--tasks", "tasks_file", metavar="FILE", type=click.Path(), help="The tasks file.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option("--base", metavar="PATH", help="The model that merging began from.")
@click.option(
    "--expert", "experts", multiple=True, metavar="NAME=PATH", callback=_named,
    help="A task's reference model; may be repeated.",
)  # fmt: skip
@click.option("--task", "chosen", multiple=True, metavar="NAME", help="Only this task; repeatable.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N rows a task.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="Write results as JSON.")
@click.option("--plot", metavar="FILE", type=click.Path(), help="Write the figure, an SVG.")
@click.option("--outcomes", is_flag=True, help="JSON with the outcome of every example.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--no-cache", is_flag=True, help="Score anew what earlier runs have scored.")
@click.option("--device", callback=_maybe_device, help="auto, cpu or cuda:N.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Instead of the checkpoint's own.")
@click.option(
    "--trust-remote-code", is_flag=True, default=None, help="Run Python code of the checkpoints."
)
@click.option("--list", "listed", is_flag=True, help="List the kinds of task, or explain one.")
@access_options
@json_option
def command(
    out: Output,
    checkpoints: tuple[str, ...],
    tasks_file: str | None,
    listed: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Score models on the tasks of a file.

    CHECKPOINTs are scored, and the base and the experts that the file names. Scores are kept, so
    that an interrupted command continues and a repeated one is quick. Exit code 1 if a score
    failed. `--list KIND` explains what a task of a kind can say.
    """
    if listed:
        _list(out, checkpoints, as_json)
        return OK
    if tasks_file is None:
        raise click.UsageError("a tasks file is needed: --tasks FILE; --list shows what it can say")
    if options["outcomes"] and not (as_json or options["output"]):
        raise click.UsageError("--outcomes needs a place: --json, or -o FILE")
    _check_outputs(options)
    found = _run(out, checkpoints, _tasks(tasks_file, options), options)
    _write(out, found, options)
    _show(out, found, as_json, options["outcomes"])
    return _report_failures(out, found)


def _list(out: Output, kinds: tuple[str, ...], as_json: bool) -> None:
    from mergewise.evidence.evaluators import all_evaluators, get_evaluator
    from mergewise.report.evaluators import evaluator_dict, evaluator_page, evaluators_list

    chosen = [get_evaluator(kind) for kind in kinds] or list(all_evaluators().values())
    if as_json:
        out.json([evaluator_dict(evaluator) for evaluator in chosen])
    elif kinds:
        out.data(*(part for evaluator in chosen for part in evaluator_page(evaluator)))
    else:
        out.data(*evaluators_list(chosen))
        out.note("`mergewise evaluate --list KIND` explains one")


def _tasks(path: str, options: dict[str, Any]) -> Tasks:
    from mergewise.evidence import load_tasks

    tasks = load_tasks(Path(path))
    if options["chosen"]:
        tasks = tasks.only(options["chosen"])
    return tasks if options["limit"] is None else tasks.limited(options["limit"])


def _check_outputs(options: dict[str, Any]) -> None:
    for path in (Path(options[key]) for key in ("output", "plot") if options[key]):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: give the name of a file in a folder that exists")
        if path.exists() and not options["overwrite"]:
            raise OutputError(f"{path}: exists already; --overwrite replaces it")


def _run(
    out: Output, checkpoints: tuple[str, ...], tasks: Tasks, options: dict[str, Any]
) -> Evaluation:
    from mergewise.evidence import evaluate

    if not (checkpoints or options["base"] or options["experts"] or tasks.base or tasks.experts):
        raise click.UsageError("nothing to score: give a CHECKPOINT")
    last: list[Step] = []
    out.when_interrupted = lambda: _interrupted(last, options["no_cache"])
    with terminable(), steps(out) as report:

        def note(step: Step) -> None:
            last[:] = [step]
            report(step)

        return evaluate(
            checkpoints,
            tasks,
            split=options["split"],
            base=options["base"],
            experts=options["experts"],
            cache=not options["no_cache"],
            progress=note,
            **{key: options[key] for key in ("device", "dtype", "trust_remote_code")},
        )


def _interrupted(last: list[Step], no_cache: bool) -> str:
    if not last or no_cache:
        return "interrupted; nothing was written"
    done = f"{last[0].number} of {last[0].total} scores"
    return f"interrupted after {done}; the same command continues with what the cache has kept"


def _write(out: Output, found: Evaluation, options: dict[str, Any]) -> None:
    from mergewise.checkpoint import write_file

    if options["output"]:
        text = json.dumps(_as_dict(found, options["outcomes"]), indent=1)
        write_file(Path(options["output"]), (text + "\n").encode())
        out.note(f"numbers: {options['output']}")
    if options["plot"]:
        from mergewise.report.evaluation import figure

        write_file(Path(options["plot"]), figure(found).encode())
        out.note(f"figure: {options['plot']}")


def _as_dict(found: Evaluation, outcomes: bool) -> dict[str, Any]:
    from mergewise.report.evaluation import measures

    return {**found.to_dict(outcomes=outcomes), "measures": measures(found)}


def _show(out: Output, found: Evaluation, as_json: bool, outcomes: bool) -> None:
    if as_json:
        out.json(_as_dict(found, outcomes))
    else:
        from mergewise.report.evaluation import table

        made = table(found)
        out.data(*(made if isinstance(made, list | tuple) else [made]))
    for task, note in _notes(found):
        out.note(f"{task}: {note}")
    total = sum(len(row) for row in found.scores.values())
    known = f", {found.cached} of them from earlier runs" if found.cached else ""
    again = "; --no-cache scores them anew" if found.cached else ""
    out.note(f"{count(total, 'score')} in {show_seconds(found.seconds)}{known}{again}")


def _notes(found: Evaluation) -> list[tuple[str, str]]:
    """(task, what a reader must know), each once however many models it holds for."""
    every = (
        (task, note)
        for row in found.scores.values()
        for task, result in row.items()
        for note in getattr(result, "notes", ())
    )
    return sorted(dict.fromkeys(every))


def _report_failures(out: Output, found: Evaluation) -> int:
    for model, task, failure in found.failures:
        out.error(f"{model} on {task}: {failure.kind}: {failure.message}")
        if out.verbosity > 1:
            out.say(failure.traceback)
    return FAILED if found.failures else OK
