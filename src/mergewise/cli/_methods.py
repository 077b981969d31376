"""`mergewise methods`: what there is to merge with."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from mergewise.cli._options import json_option, our_command
from mergewise.cli._output import Output


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from mergewise.methods import all_methods

    return [
        CompletionItem(name, help=method.summary)
        for name, method in all_methods().items()
        if name.startswith(incomplete)
    ]


@our_command(name="methods")
@click.argument("name", required=False, shell_complete=_complete)
@json_option
def command(out: Output, name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain one.

    One method is shown with its formula, paper, parameters and an example recipe.
    """
    from mergewise.methods import all_methods, get_method
    from mergewise.report.methods import method_dict, method_page, methods_list

    if name is not None:
        method = get_method(name)
        if as_json:
            out.json(method_dict(method))
        else:
            out.data(*method_page(method))
        return
    methods = all_methods().values()
    if as_json:
        out.json([method_dict(method) for method in methods])
        return
    out.data(*methods_list(methods))
    out.note("`mergewise methods NAME` explains one")
