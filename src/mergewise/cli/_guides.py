"""`mergewise guides`: what there is to guide a merge with."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from mergewise.cli._options import json_option, our_command
from mergewise.cli._output import Output


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of guides that begin so."""
    from mergewise.guides import all_guides

    return [
        CompletionItem(name, help=guide.summary)
        for name, guide in all_guides().items()
        if name.startswith(incomplete)
    ]


@our_command(name="guides")
@click.argument("name", required=False, shell_complete=complete)
@json_option
def command(out: Output, name: str | None, as_json: bool) -> None:
    """List the guides, or explain one.

    A guide reads evidence about models and writes a recipe. One guide is shown with its formula,
    paper, settings and the statistics it needs.
    """
    from mergewise.guides import all_guides, get_guide
    from mergewise.report.guides import guide_dict, guide_page, guides_list

    if name is not None:
        guide = get_guide(name)
        if as_json:
            out.json(guide_dict(guide))
        else:
            out.data(*guide_page(guide))
        return
    guides = all_guides().values()
    if as_json:
        out.json([guide_dict(guide) for guide in guides])
        return
    out.data(*guides_list(guides))
    out.note("`mergewise guides NAME` explains one")
