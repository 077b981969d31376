"""`mergewise demo`: everything once, on real text."""

from __future__ import annotations

from pathlib import Path

import click

from mergewise.cli._options import json_option, our_command
from mergewise.cli._output import Output


@our_command(name="demo")
@click.argument("folder", metavar="[OUT]", default="demo", type=click.Path(path_type=Path))
@click.option("--fast", is_flag=True, help="Tiny models: the mechanics only, no real scores.")
@json_option
def command(out: Output, folder: Path, fast: bool, as_json: bool) -> None:
    """Train a small base and two experts, merge them, and compare.

    Takes minutes, and leaves ordinary Hugging Face folders in OUT (default: demo).
    """
    from mergewise.demo import run_demo

    results = run_demo(folder, fast=fast, console=out.console(stderr=True))
    if as_json:
        out.json(results)
    else:
        out.line(str(folder / "results.json"))
