"""`mergewise lora`: adapters, extracted from models and merged with one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise.cli._interrupt import terminable
from mergewise.cli._options import access_options, json_option, our_command, read_folder
from mergewise.cli._output import Output, count
from mergewise.cli._pairs import scalars
from mergewise.cli._progress import progress

if TYPE_CHECKING:
    from mergewise.forms import Extracted, LayerError, Overlap

_DTYPES = ("float32", "float16", "bfloat16", "float64")


@click.group()
def command() -> None:
    """Extract a LoRA from a model, or merge LoRAs into one.

    A base with an adapter on top, BASE+ADAPTER, is a model in any recipe.
    """


def _size_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "-o", "--output", metavar="OUT", type=click.Path(), required=True,
            callback=read_folder, help="Folder of the adapter.",
        ),
        click.option("--rank", metavar="R", type=click.IntRange(min=1), help="At most."),
        click.option(
            "--energy", metavar="E", type=click.FloatRange(0, 1, min_open=True),
            help="The least rank that keeps this share of the squared norm, such as 0.9.",
        ),
        click.option("--dtype", type=click.Choice(_DTYPES), help="Of the factors."),
        click.option("--overwrite", is_flag=True, help="Replace an adapter in OUT."),
        json_option,
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@our_command(name="extract")
@click.argument("finetuned", type=click.Path())
@click.argument("base", type=click.Path())
@click.option(
    "--rest", type=click.Choice(("whole", "skip")), default="whole", show_default=True,
    help="Changed norms and biases: stored whole, or left out.",
)  # fmt: skip
@access_options
@_size_options
def extract(
    out: Output, finetuned: str, base: str, rest: str, output: Path, as_json: bool, **options: Any
) -> None:
    """Write the LoRA that makes FINETUNED of BASE, and the error of each layer.

    Give --rank, --energy, or both.
    """
    from mergewise.forms import extract_lora

    with terminable(), progress(out, "extracting", "weights") as report:
        made = extract_lora(finetuned, base, output, rest=rest, progress=report, **options)
    if as_json:
        out.json(made.to_dict())
        return
    tell_extracted(out, made)
    out.note(f"written to {output}; use it in recipes as {base}+{output}")


def tell_extracted(out: Output, made: Extracted) -> None:
    """Ranks and errors, and what has no factors."""
    _show(out, made.layers, made.error)
    if made.whole:
        out.note(f"stored whole: {count(len(made.whole), 'tensor')}")
    if made.skipped:
        out.warn(f"left out: {count(len(made.skipped), 'changed tensor')}, {made.skipped[0]}, …")


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r}: numbers expected, such as 0.3,0.7") from None


@our_command(name="merge")
@click.argument("adapters", nargs=-1, required=True, type=click.Path())
@click.option("--weights", metavar="W,W", callback=_numbers, help="One for each (1/n).")
@click.option(
    "--method", metavar="NAME", help="Of task vectors, such as ties; a weighted sum if not given."
)
@click.option(
    "--set", "parameters", multiple=True, metavar="KEY=VALUE", callback=scalars("density=0.5"),
    help="A parameter of the method, such as --set density=0.5; may be repeated.",
)  # fmt: skip
@click.option(
    "--space", type=click.Choice(("delta", "factor", "units")), default="delta",
    show_default=True,
    help="Merge B @ A, or A and B apart (as LoRA soups do; not the same), or cluster their ranks "
    "into --rank of them (LoRA-LEGO).",
)  # fmt: skip
@click.option(
    "--negate-b", is_flag=True, help="With --space factor: a negative weight turns B alone (PEM)."
)
@click.option(
    "--reweight", type=click.Choice(("both", "parameter", "output", "none")), default="both",
    show_default=True, help="With --space units: what is scaled afterwards.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, help="Of random masks and clusters.")
@access_options
@_size_options
def merge(
    out: Output, adapters: tuple[str, ...], output: Path, as_json: bool, **options: Any
) -> None:
    """Merge LoRAs of one base into one LoRA, or IA3 adapters into one.

    Without --rank and --energy it is their weighted sum exactly, of all their ranks together.
    """
    from mergewise.forms import merge_adapters

    with terminable(), progress(out, "merging", "weights") as report:
        made = merge_adapters(adapters, output, progress=report, **options)
    for warning in made.warnings:
        out.warn(warning)
    if as_json:
        out.json(made.to_dict())
        return
    _show(out, made.layers, made.error)
    out.note(f"written to {output}")


@our_command(name="overlap")
@click.argument("adapters", nargs=-1, required=True, type=click.Path())
@access_options
@json_option
def overlap(out: Output, adapters: tuple[str, ...], as_json: bool) -> None:
    """How much LoRAs of one base interfere: 0 for orthogonal subspaces, which add up undisturbed.

    For every two, the mean and the largest over their weights, of the inputs that they read (A)
    and of the outputs that they write (B). Whole tensors beside them are left out, and named.
    """
    from mergewise.forms import adapter_overlap

    told: list[str] = []
    with terminable(), progress(out, "comparing", "weights") as report:
        found = adapter_overlap(adapters, progress=report, warn=told.append)
    for warning in told:
        out.warn(warning)
    if as_json:
        out.json([vars(one) for one in found])
        return
    _show_overlap(out, adapters, found)


command.add_command(extract)
command.add_command(merge)
command.add_command(overlap)


def _show_overlap(out: Output, adapters: tuple[str, ...], found: tuple[Overlap, ...]) -> None:
    from rich.table import Table

    table = Table(box=None)
    for heading in ("adapters", "weights", "inputs: mean", "largest", "outputs: mean", "largest"):
        table.add_column(heading, justify="left" if heading == "adapters" else "right")
    for first, second in dict.fromkeys((one.first, one.second) for one in found):
        both = [one for one in found if (one.first, one.second) == (first, second)]
        cells = []
        for values in ([one.inputs for one in both], [one.outputs for one in both]):
            cells += [f"{sum(values) / len(values):.3f}", f"{max(values):.3f}"]
        table.add_row(f"{adapters[first]}, {adapters[second]}", str(len(both)), *cells)
    out.data(table)


def _show(out: Output, layers: tuple[LayerError, ...], error: float) -> None:
    from rich.table import Table

    table = Table(box=None)
    for heading in ("weight", "rank", "change", "error"):
        table.add_column(heading, justify="left" if heading == "weight" else "right")
    for layer in layers:
        table.add_row(
            layer.name, str(layer.rank or ""), f"{layer.change:.4g}", f"{layer.error:.2%}"
        )
    table.add_row("all", "", "", f"{error:.2%}")
    out.data(table)
