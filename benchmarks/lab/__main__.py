"""Run families of the lab; see `python -m benchmarks.lab --help`."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from benchmarks.lab._family import SIZES, Family
from mergewise._lazy import torch
from mergewise.cli._interrupt import terminable
from mergewise.constants import yield_processors
from mergewise.errors import DataError, MergewiseError
from mergewise.report.tables import text

ROOT = Path(__file__).parents[2]
FAMILIES = ("digits", "vision", "text", "language")
OWN_DATA = {"digits"}
"""Families that need no data folder, and take none unless told to."""
MEANINGLESS, INTERRUPTED = 1, 130


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
@click.option("--only", multiple=True, metavar="METHOD", help="Try this method only; repeatable.")
@click.option("--pairs", is_flag=True, help="Merge pairs of experts alone, not all of them.")
@click.option("--publish", is_flag=True, help="Write the results to docs/results too.")
def main(
    families: Sequence[str], data: Path | None, seeds: int | None, size: str | None, lab: Path,
    only: Sequence[str], pairs: bool, publish: bool,
) -> None:  # fmt: skip
    """Make experts, try every merge method on them, and compare.

    FAMILIES are digits, vision, text and language; all four without names, digits first.
    """
    console, err = Console(), Console(stderr=True)
    _refuse_unknown(only)
    if only and publish:
        raise click.UsageError("--publish is for results of all methods; leave out --only")
    size = size or ("gpu" if torch.cuda.is_available() else "cpu")
    fine = True
    for name in families or FAMILIES:
        try:
            mine = data or (None if name in OWN_DATA else _usual_data())
            with terminable():
                fine &= _one(name, mine, seeds, size, lab, only, pairs, publish, console, err)
        except KeyboardInterrupt:
            err.print("interrupted; the same command goes on from here")
            sys.exit(INTERRUPTED)
        except MergewiseError as error:
            err.print(text(f"{name}: {error}"))
            fine = False
    sys.exit(0 if fine else MEANINGLESS)


def _refuse_unknown(only: Sequence[str]) -> None:
    from mergewise.methods import get_method

    for name in only:
        try:
            get_method(name)
        except MergewiseError as error:
            raise click.ClickException(str(error)) from None


def _usual_data() -> Path | None:
    if told := os.environ.get("MERGEWISE_DATA"):
        if not Path(told).is_dir():
            raise DataError(f"MERGEWISE_DATA is {told}, which is no folder; set it, or use --data")
        return Path(told)
    place = ROOT.parent / "shared" / "data"
    return place if place.is_dir() else None


def _family(name: str, data: Path | None, lab: Path, size: str) -> Family:
    module = importlib.import_module(f"benchmarks.lab.{name}")
    cls = next(c for c in vars(module).values() if getattr(c, "name", None) == name)
    mark = "" if data is None else f"-{sha256(str(data.resolve()).encode()).hexdigest()[:8]}"
    device = "cuda" if size == "gpu" and torch.cuda.is_available() else "cpu"
    return cast(Any, cls)(data, lab / f"{name}-{size}{mark}", size, device)


def _one(
    name: str, data: Path | None, seeds: int | None, size: str, lab: Path, only: Sequence[str],
    pairs: bool, publish: bool, console: Console, err: Console,
) -> bool:  # fmt: skip
    """Run a family and report; False if its numbers mean nothing."""
    from benchmarks.lab._contenders import GRID, contenders
    from benchmarks.lab._exact import checked
    from benchmarks.lab._orders import tried
    from benchmarks.lab._pairs_table import show_two
    from benchmarks.lab._progress import clock
    from benchmarks.lab._report import hardware, versions, write_all, write_pairs
    from benchmarks.lab._results import reference_means
    from benchmarks.lab._run import run_family
    from benchmarks.lab._table import headline, show
    from mergewise.engine import processors

    start = time.monotonic()
    family = _family(name, data, lab, size)
    torch.set_num_threads(family.threads or processors())
    every = list(range(seeds or family.seeds))
    err.print(text(f"{family.title}; {len(every)} seeds, about {family.budget:g} minutes"))
    results = run_family(family, every, err, only=only, pairs_alone=pairs)
    results.about |= {
        "command": _command(sys.argv[1:]),
        "size": size,
        "minutes": (time.monotonic() - start) / 60,
        "grid": list(GRID),
        "settings": family.settings(),
        "versions": versions(),
        "hardware": hardware(family.device),
    }
    pages = ROOT / "docs" / "results" if publish else None
    show_two(results, console)
    if pairs:
        for file in write_pairs(family.folder, results, pages):
            err.print(text(f"wrote {file}"))
        return True
    models = family.train(every[0], err)
    exact = checked(models, contenders(len(models.experts), 0)[0])
    gates, findings = family.gates(reference_means(results)), tried(results)
    show(results, console)
    for finding in findings:
        if finding.gap is not None:
            say(console, f"{finding.claim.strength:9} {finding.claim.text}: {finding}")
    untried = sum(finding.gap is None for finding in findings)
    say(
        console,
        f"{untried} more orders name methods that are not here; the page lists them",
    )
    for property_ in exact:
        say(console, f"exact     {property_.text}: {property_}")
    for gate in gates:
        say(console, f"{'gate met' if gate.holds else 'GATE NOT MET'}: {gate.text}")
    for file in write_all(family.folder, results, gates, findings, exact, pages):
        err.print(text(f"wrote {file}"))
    say(console, f"{name}: {headline(results)}; {clock(60 * results.about['minutes'])}")
    if not all(gate.holds for gate in gates):
        err.print("the gate is not met: this fixture says nothing about methods", style="red")
        return False
    return True


def _command(arguments: Sequence[str]) -> str:
    """The command, without folders of this machine."""
    kept, places = [], ("--lab", "--data")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before not in places and not word.startswith(places):
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks.lab", *kept])


def say(console: Console, words: str) -> None:
    """A line, however long."""
    console.print(text(words), soft_wrap=True)


if __name__ == "__main__":
    yield_processors()
    main()
