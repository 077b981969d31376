"""`mergewise transplant`: a model gets another model's tokenizer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mergewise.cli._interrupt import terminable
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_device,
    read_folder,
)
from mergewise.cli._output import Output
from mergewise.cli._transform import finish, told


@our_command(name="transplant")
@click.argument("model", type=click.Path())
@click.argument("donor", type=click.Path())
@click.argument("output", metavar="OUT", type=click.Path(), callback=read_folder)
@click.option(
    "-a", "--method", default="omp", show_default=True, help="How rows that MODEL lacks are made.",
    type=click.Choice(("omp", "nearest", "subword", "mean", "zero", "random")),
)  # fmt: skip
@click.option(
    "-k", default=64, show_default=True, type=click.IntRange(1, 4096), metavar="K",
    help="omp, nearest: tokens that a new row is combined of.",
)  # fmt: skip
@click.option(
    "--match", default="exact", show_default=True, type=click.Choice(("exact", "byte", "prefix")),
    help="Which tokens are MODEL's own: of the same text; also of the same byte; then the longest "
    "that the text begins with.",
)  # fmt: skip
@click.option(
    "--match-for", default="both", show_default=True,
    type=click.Choice(("both", "embed", "lm_head")), help="Where byte and prefix count.",
)  # fmt: skip
@click.option(
    "--metric", default="euclidean", show_default=True,
    type=click.Choice(("euclidean", "cosine")), help="nearest: distance of tokens.",
)  # fmt: skip
@click.option(
    "-w", "--weighting", default="distance_proportional", show_default=True,
    type=click.Choice(("distance_proportional", "barycentric", "least_squares")),
    help="nearest: weights of the tokens found.",
)  # fmt: skip
@click.option(
    "-s", "--subword", default="mean", show_default=True,
    type=click.Choice(("mean", "sum", "weighted_mean", "first_last")),
    help="subword: how the pieces' rows are combined.",
)  # fmt: skip
@click.option(
    "--pad-to-multiple-of", metavar="N", type=click.IntRange(1, 1 << 16),
    help="Round the number of tokens up; else as many rows as DONOR has.",
)  # fmt: skip
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), help="random: of the draw.")
@click.option("--device", default="cpu", callback=read_device, help="auto, cpu or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace what OUT holds.")
@click.option("--restart", is_flag=True, help="Discard an unfinished merge in OUT.")
@access_options
@json_option
def command(
    out: Output, model: str, donor: str, output: Path, as_json: bool, device: str, **options: Any
) -> None:
    """Give MODEL the tokenizer of DONOR, into the folder OUT.

    Rows of tokens that both have are MODEL's own; `mergewise transforms transplant` has the
    formulas of the others. Prints OUT.
    """
    start = time.monotonic()
    out.when_interrupted = lambda: f"interrupted; nothing was written to {output}"
    with terminable(), told(out) as report:
        from mergewise.transforms import Opening, transplant

        opening = Opening(device=device)
        done = transplant(model, donor, output, opening=opening, progress=report, **options)
    finish(out, done, time.monotonic() - start, as_json)
