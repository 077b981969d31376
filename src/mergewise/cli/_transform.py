"""`mergewise transform`: one checkpoint in, one out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise.cli._interrupt import terminable
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_device,
    read_folder,
)
from mergewise.cli._output import Output, count
from mergewise.cli._pairs import scalars
from mergewise.cli._progress import EVERY, show_seconds
from mergewise.cli._transforms import complete

if TYPE_CHECKING:
    from mergewise.evidence import Data
    from mergewise.transforms import Transformed

_DTYPES = ("bfloat16", "float16", "float32", "float64")
_ROLES = ("causal_lm", "body", "text_classifier", "image_classifier")


def _weights(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r}: numbers expected, such as 0.3,0.7") from None


@our_command(name="transform")
@click.argument("name", metavar="TRANSFORM", shell_complete=complete)
@click.argument("checkpoint", type=click.Path())
@click.option(
    "-o", "--output", metavar="OUT", type=click.Path(), required=True, callback=read_folder,
    help="Folder of the result.",
)  # fmt: skip
@click.option(
    "--data", multiple=True, metavar="[LABEL=]D",
    help="File, or datasets:NAME; for all, or for one of the models.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, metavar="[LABEL=]PATH",
    help="A further model, such as one that was merged; may be repeated.",
)  # fmt: skip
@click.option("--weights", metavar="W,W", callback=_weights, help="Of the models (equal).")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=scalars("average=std"),
    help="A setting of the transform, such as --set average=variance; may be repeated.",
)  # fmt: skip
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N records.")
@click.option("--separator", help="Between the records of a text file, such as '\\n%%\\n'.")
@click.option("--template", help="Text of a record, such as '{question} {answer}'.")
@click.option("--split", default="train", show_default=True, help="Of .npz files and datasets.")
@click.option(
    "--prepare", multiple=True, metavar="KEY=VALUE", callback=scalars("average=std"),
    help="How images are prepared, such as --prepare mean=0.5; may be repeated.",
)  # fmt: skip
@click.option(
    "--max-length", metavar="N", type=click.IntRange(min=1), help="Tokens of a sequence (512)."
)
@click.option(
    "--batch-size", metavar="N", type=click.IntRange(min=1), default=8, show_default=True,
    help="Examples at a time.",
)  # fmt: skip
@click.option("--role", type=click.Choice(_ROLES), help="Instead of what the config says.")
@click.option("--device", default="cpu", callback=read_device, help="auto, cpu or cuda:N.")
@click.option(
    "--dtype", type=click.Choice(_DTYPES), default="float32", show_default=True,
    help="In which models compute; weights are stored as they were.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what OUT holds.")
@click.option("--restart", is_flag=True, help="Discard an unfinished merge in OUT.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code of a checkpoint.")
@access_options
@json_option
def command(
    out: Output,
    name: str,
    checkpoint: str,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Put CHECKPOINT through TRANSFORM, into the folder OUT.

    `mergewise transforms` lists them. Weights that do not change are copied as they are. Prints
    OUT.
    """
    start = time.monotonic()
    out.when_interrupted = lambda: f"interrupted; nothing was written to {output}"
    with terminable(), told(out) as report:
        done = _run(name, checkpoint, output, options, report)
    finish(out, done, time.monotonic() - start, as_json)


def _run(
    name: str,
    checkpoint: str,
    output: Path,
    options: dict[str, Any],
    report: Callable[[str, int, int], None] | None,
) -> Transformed:
    from mergewise.evidence import Reading
    from mergewise.transforms import Opening, transform

    reading = Reading(
        options["batch_size"], options["max_length"], options["template"], options["prepare"]
    )
    opening = Opening(
        options["role"], options["device"], options["dtype"], options["trust_remote_code"]
    )
    return transform(
        name, checkpoint, output,
        data=_data(options), models=_models(options["models"]), weights=options["weights"],
        reading=reading, opening=opening, limit=options["limit"], split=options["split"],
        overwrite=options["overwrite"], restart=options["restart"], progress=report,
        **options["settings"],
    )  # fmt: skip


def _named(text: str) -> tuple[str, str]:
    """Label and path of ``LABEL=PATH``; no label if there is such a file as the whole is."""
    label, equals, path = text.partition("=")
    return (label, path) if equals and label and not Path(text).exists() else ("", text)


def _models(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        label, path = _named(text)
        label = label or Path(path).name
        if label in found:
            raise click.UsageError(f"two models are called {label!r}; give labels: LABEL=PATH")
        found[label] = path
    return found


def _data(options: dict[str, Any]) -> dict[str, Data]:
    from mergewise.evidence import Data

    between = (options["separator"] or "").replace("\\n", "\n")
    found: dict[str, Data] = {}
    for text in options["data"]:
        label, path = _named(text)
        if label in found:
            raise click.UsageError(f"--data {f'for {label} ' if label else ''}is given twice")
        source = path if path.startswith("datasets:") else Path(path)
        found[label] = Data(source, split=options["split"], separator=between)
    return found


def finish(out: Output, done: Transformed, seconds: float, as_json: bool) -> None:
    from mergewise.report.transforms import transformed_dict

    for warning in done.warnings:
        out.warn(warning)
    for note in done.notes:
        out.note(note)
    out.note(f"{count(len(done.changed), 'tensor')} changed, {show_seconds(seconds)}")
    if as_json:
        out.json({**transformed_dict(done), "seconds": round(seconds, 3)})
    else:
        out.line(str(done.out))


@contextmanager
def told(out: Output) -> Iterator[Callable[[str, int, int], None] | None]:
    """What to call with stage, done and total; None with ``-q``."""
    if out.quiet:
        yield None
    elif sys.stderr.isatty() and not out.console(stderr=True).is_dumb_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=out.console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading the models", total=None)
            yield lambda stage, done, total: bar.update(
                task, description=stage, completed=done, total=total
            )
    else:
        yield _Lines(out)


class _Lines:
    """Prints a line at most every `EVERY` seconds."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            self._out.note(f"{stage}: {done:,} of {total:,}")
