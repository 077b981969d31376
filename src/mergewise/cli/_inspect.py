"""`mergewise inspect`: a checkpoint, from its headers."""

from __future__ import annotations

import click

from mergewise.cli._options import access_options, json_option, our_command
from mergewise.cli._output import Output


@our_command(name="inspect")
@click.argument("checkpoint", type=click.Path())
@click.option("--tensors", is_flag=True, help="Every tensor on its own row.")
@access_options
@json_option
def command(out: Output, checkpoint: str, tensors: bool, as_json: bool) -> None:
    """Show a model or BASE+ADAPTER: tensors, shapes.

    Only headers are read, whatever its size.
    """
    from pathlib import Path

    from mergewise.checkpoint import inspect_checkpoint
    from mergewise.report.checkpoint import checkpoint_page

    summary = inspect_checkpoint(Path(checkpoint))
    if as_json:
        out.json(summary.to_dict())
        return
    out.data(*checkpoint_page(summary, every=tensors))
    for warning in summary.warnings:
        out.warn(warning)
