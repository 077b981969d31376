"""`mergewise transforms`: what a finished model can be put through."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from mergewise.cli._options import json_option, our_command
from mergewise.cli._output import Output


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of transforms that begin so."""
    from mergewise.transforms import all_transforms

    return [
        CompletionItem(name, help=transform.summary)
        for name, transform in all_transforms().items()
        if name.startswith(incomplete)
    ]


@our_command(name="transforms")
@click.argument("name", required=False, shell_complete=complete)
@json_option
def command(out: Output, name: str | None, as_json: bool) -> None:
    """List the transforms, or explain one.

    A transform makes one checkpoint of another. One is shown with its formula, paper, settings,
    and what data and further models it needs.
    """
    from mergewise.report.transforms import transform_dict, transform_page, transforms_list
    from mergewise.transforms import all_transforms, get_transform

    if name is not None:
        transform = get_transform(name)
        if as_json:
            out.json(transform_dict(transform))
        else:
            out.data(*transform_page(transform))
        return
    transforms = all_transforms().values()
    if as_json:
        out.json([transform_dict(transform) for transform in transforms])
        return
    out.data(*transforms_list(transforms))
    out.note("`mergewise transforms NAME` explains one")
