"""`mergewise evidence`: look into evidence files, and add up those of several workers."""

from __future__ import annotations

import click

from mergewise.cli._interrupt import terminable
from mergewise.cli._options import json_option, our_command
from mergewise.cli._output import Output, count


@click.group(name="evidence")
def command() -> None:
    """Show evidence files, or add them up."""


@our_command(name="show")
@click.argument("file", type=click.Path())
@click.option("--tensors", is_flag=True, help="Every tensor on its own row.")
@json_option
def show(out: Output, file: str, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds: statistics, model, data, counts."""
    from mergewise.evidence import load_evidence
    from mergewise.report.evidence import evidence_dict, evidence_page

    found = load_evidence(file)
    if as_json:
        out.json(evidence_dict(found))
    else:
        out.data(*evidence_page(found, every=tensors))


@our_command(name="merge")
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path())
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(), help="The sum.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def merge(out: Output, files: tuple[str, ...], output: str, overwrite: bool) -> None:
    """Add up FILEs that workers collected from different shares of the data. Prints OUT."""
    from mergewise.evidence import merge_evidence

    out.when_interrupted = lambda: f"interrupted; nothing was written to {output}"
    with terminable():
        found = merge_evidence(files, output, overwrite=overwrite)
    out.note(f"{count(len(files), 'file')} added up: {', '.join(found.statistics)}")
    out.line(str(found.path))


command.add_command(show)
command.add_command(merge)
