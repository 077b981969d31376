"""`mergewise plan`: everything a merge would do, from headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_recipe,
    recipe_options,
)
from mergewise.cli._output import Output

if TYPE_CHECKING:
    from mergewise.plan import MergePlan, StagePlan

_NAMES_SHOWN = 8


@our_command(name="plan")
@click.argument("recipe", type=click.Path())
@click.option(
    "--explain", metavar="TENSOR",
    help="All about one output tensor: its name, a part of it, or a pattern with *.",
)  # fmt: skip
@click.option("--tensors", is_flag=True, help="Every tensor on its own row.")
@recipe_options
@access_options
@json_option
def command(
    out: Output,
    recipe: str,
    explain: str | None,
    tensors: bool,
    overrides: tuple[str, ...],
    lenient: bool,
    as_json: bool,
) -> None:
    """Show what merging RECIPE would do, without reading a tensor.

    The same checks as by merge are made: recipe, models, shapes.
    """
    from mergewise.plan import build_plan

    plan = build_plan(read_recipe(out, recipe, lenient, overrides))
    if explain is not None:
        _explain(out, plan, explain, as_json)
        return
    from mergewise.report.plan import plan_dict, plan_page

    if as_json:
        out.json(plan_dict(plan))
        return
    out.data(*plan_page(plan, every=tensors))
    for warning in plan.warnings:
        out.warn(warning)


def _explain(out: Output, plan: MergePlan, query: str, as_json: bool) -> None:
    from mergewise.report.explain import explanation, tensor_page

    found = _find(plan, query)
    if as_json:
        out.json([explanation(stage, name) for stage, name in found])
        return
    named = len(plan.stages) > 1
    out.data(*(part for stage, name in found for part in tensor_page(stage, name, named=named)))


def _find(plan: MergePlan, query: str) -> list[tuple[StagePlan, str]]:
    from mergewise.plan import closest_tensors, find_tensors

    found = find_tensors(plan, query)
    names = list(dict.fromkeys(name for _, name in found))
    if not found:
        close = closest_tensors(plan, query)
        hint = f"did you mean {' or '.join(close)}?" if close else "--tensors lists them"
        raise click.BadParameter(f"no output tensor {query!r}; {hint}", param_hint="--explain")
    if len(names) > 1 and not any(c in query for c in "*?["):
        some = ", ".join(names[:_NAMES_SHOWN]) + (", …" if names[_NAMES_SHOWN:] else "")
        raise click.BadParameter(
            f"{len(names)} tensors have {query!r} in their names: {some}; "
            f"name one, or write '*{query}*' for all",
            param_hint="--explain",
        )
    return found
