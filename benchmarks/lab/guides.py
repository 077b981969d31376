"""Guided against uniform density; see `python -m benchmarks.lab.guides --help`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks.lab.__main__ import FAMILIES, INTERRUPTED, OWN_DATA, ROOT, _family, _usual_data, say
from benchmarks.lab._family import SIZES
from benchmarks.lab._guides_arms import ARMS, DENSITIES, EXAMPLES, METHODS, SETS, Arm
from mergewise._lazy import torch
from mergewise.cli._interrupt import terminable
from mergewise.constants import yield_processors
from mergewise.errors import MergewiseError
from mergewise.report.tables import text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("families", nargs=-1, type=click.Choice(FAMILIES))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of tasks in the format of the shared data. By default $MERGEWISE_DATA, "
    "else ../shared/data; digits brings its own.",
)
@click.option("--seeds", type=click.IntRange(1), help="How many seeds; by default the family's.")
@click.option("--size", type=click.Choice(SIZES), help="Default: gpu where there is one, else cpu.")
@click.option(
    "--lab",
    type=click.Path(path_type=Path),
    default=ROOT / "lab",
    help="Where models and scores are kept; a stopped run goes on from there.",
)
@click.option("--only", multiple=True, metavar="ARM", help="Try this arm only; repeatable.")
@click.option("--extra", is_flag=True, help="Also arms that ask why, such as narrower ranges.")
@click.option("--density", "densities", multiple=True, type=float, help="Repeatable.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--set", "sets", multiple=True, type=click.Choice(SETS), help="One expert, or all.")
@click.option("--publish", is_flag=True, help="Write the results to docs/results too.")
def main(
    families: Sequence[str], data: Path | None, seeds: int | None, size: str | None, lab: Path,
    only: Sequence[str], extra: bool, densities: Sequence[float], methods: Sequence[str],
    sets: Sequence[str], publish: bool,
) -> None:  # fmt: skip
    """Compare guided densities with uniform ones at the same mean, cell by cell.

    FAMILIES are digits, vision, text and language; digits without names.
    """
    console, err = Console(), Console(stderr=True)
    arms, left_out = chosen_arms(only, extra)
    size = size or ("gpu" if torch.cuda.is_available() else "cpu")
    fine = True
    for name in families or ("digits",):
        from benchmarks.lab._guides_run import Choice

        choice = Choice(arms, densities or DENSITIES, methods or list(METHODS), sets or SETS)
        try:
            mine = data or (None if name in OWN_DATA else _usual_data())
            with terminable():
                _one(name, mine, seeds, size, lab, choice, left_out, publish, console, err)
        except KeyboardInterrupt:
            err.print("interrupted; the same command goes on from here")
            sys.exit(INTERRUPTED)
        except MergewiseError as error:
            err.print(text(f"{name}: {error}"))
            fine = False
    sys.exit(0 if fine else 1)


def chosen_arms(only: Sequence[str], extra: bool) -> tuple[list[Arm], dict[str, str]]:
    """The arms to try, and why others are not there.

    Raises:
        UsageError: for an arm there is not.
    """
    known = [arm.name for arm in ARMS]
    if odd := set(only) - set(known):
        raise click.UsageError(f"no arm {sorted(odd)[0]!r}; there are {', '.join(known)}")
    wanted = [a for a in ARMS if (a.name in only if only else extra or not a.extra)]
    missing = {arm.name: reason for arm in wanted if (reason := arm.missing())}
    return [arm for arm in wanted if arm.name not in missing], missing


def _one(
    name: str, data: Path | None, seeds: int | None, size: str, lab: Path, choice: object,
    left_out: dict[str, str], publish: bool, console: Console, err: Console,
) -> None:  # fmt: skip
    from benchmarks.lab._guides_page import write_page
    from benchmarks.lab._guides_report import Report, sentences, write_report
    from benchmarks.lab._guides_run import Choice, run_guides
    from benchmarks.lab._report import hardware, versions
    from mergewise.engine import processors

    assert isinstance(choice, Choice)
    start = time.monotonic()
    family = _family(name, data, lab, size)
    torch.set_num_threads(family.threads or processors())
    found = run_guides(family, list(range(seeds or family.seeds)), choice, err)
    report = Report(name, family.title, choice.arms, found, left_out)
    report.about = {
        "command": shlex.join(["python", "-m", "benchmarks.lab.guides", *sys.argv[1:]]),
        "examples": EXAMPLES,
        "minutes": (time.monotonic() - start) / 60,
        "versions": versions(),
        "hardware": hardware(family.device),
    }
    pages = ROOT / "docs" / "results" if publish else None
    for file in write_report(report, family.folder, pages):
        err.print(text(f"wrote {file}"))
    if pages:
        err.print(text(f"wrote {write_page(pages)}"))
    for line in sentences(report):
        say(console, line)


if __name__ == "__main__":
    yield_processors()
    main()
