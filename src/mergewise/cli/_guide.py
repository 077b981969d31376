"""`mergewise guide`: from a recipe and data to an explicit recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise.cli._collecting import in_turn
from mergewise.cli._guides import complete
from mergewise.cli._interrupt import terminable
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_device,
)
from mergewise.cli._output import Output
from mergewise.cli._pairs import scalar, texts

if TYPE_CHECKING:
    from mergewise.evidence import Data
    from mergewise.guides import Guided

_DTYPES = ("bfloat16", "float16", "float32", "float64")


def _values(guide: str, settings: dict[str, str]) -> dict[str, Any]:
    """Values as in YAML; a number is a text where the guide wants a text."""
    from mergewise.guides import get_guide

    params = get_guide(guide).params
    found: dict[str, Any] = {}
    for name, text in settings.items():
        value = scalar(text)
        wanted = name in params and params[name].kind is str and value is not None
        found[name] = text if wanted and not isinstance(value, str) else value
    return found


def _evidence(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value in values:
        model, equals, file = value.rpartition("=")
        if not (model and equals and file):
            raise click.BadParameter(f"{value!r}: MODEL=FILE expected, the model as in the recipe")
        found.setdefault(model, []).append(file)
    return found


@our_command(name="guide")
@click.argument("name", metavar="GUIDE", shell_complete=complete)
@click.argument("recipe", type=click.Path())
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(), required=True, help="The explicit recipe.",
)  # fmt: skip
@click.option(
    "--data", "data", multiple=True, metavar="[MODEL=]D",
    help="File, or datasets:NAME; for all experts, or for one.",
)  # fmt: skip
@click.option(
    "--evidence", multiple=True, metavar="MODEL=FILE", callback=_evidence,
    help="Evidence that there is already; may be repeated.",
)  # fmt: skip
@click.option(
    "--tasks", metavar="FILE", type=click.Path(), help="For guides that score models: a tasks file."
)
@click.option(
    "--task-split", default="validation", show_default=True, help="Which part of the tasks' data."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=texts("density_min=0.4"),
    help="A setting of the guide, such as --set density_min=0.4; may be repeated.",
)  # fmt: skip
@click.option("--plot", metavar="FILE", type=click.Path(), help="Heat maps of the numbers, SVG.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N records.")
@click.option("--separator", help="Between the records of a text file, such as '\\n%%\\n'.")
@click.option("--template", help="Text of a record, such as '{question} {answer}'.")
@click.option("--split", default="train", show_default=True, help="Of .npz files and datasets.")
@click.option(
    "--max-length", metavar="N", type=click.IntRange(min=1),
    help="Tokens of a sequence (512); a longer text is cut into several.",
)  # fmt: skip
@click.option(
    "--batch-size", metavar="N", type=click.IntRange(min=1), default=8, show_default=True,
    help="Sequences at a time; changes nothing but speed and memory.",
)  # fmt: skip
@click.option("--device", default="cpu", callback=read_device, help="auto, cpu or cuda:N.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Instead of the checkpoint's own.")
@click.option("--offload", is_flag=True, help="Read each layer from disk when it runs.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code of a checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the recipe, evidence and picture.")
@access_options
@json_option
def command(
    out: Output,
    name: str,
    recipe: str,
    output: str,
    data: tuple[str, ...],
    separator: str | None,
    plot: str | None,
    settings: dict[str, str],
    as_json: bool,
    **options: Any,
) -> None:
    """Let GUIDE write the numbers of RECIPE into an explicit recipe.

    It collects what the guide needs of the experts, and of their base on the same data; this
    evidence is kept in a folder beside the output. The output merges without the data. Prints its
    path.
    """
    file = _free(output, recipe, plot, options["overwrite"])
    _check_recipe(out, file, Path(recipe))
    out.when_interrupted = lambda: f"interrupted; {file} was not written"
    common, each = _sources(data, separator, options["split"])
    with terminable():
        values = _values(name, settings)
        guided = _run(out, name, recipe, file, common, each, values, options)
    _finish(out, name, guided, file, plot, as_json)


def _run(
    out: Output,
    name: str,
    recipe: str,
    file: Path,
    common: Data | None,
    each: dict[str, Data],
    settings: dict[str, Any],
    options: dict[str, Any],
) -> Guided:
    from mergewise.guides import write_recipe

    ours = {key: options.pop(key) for key in ("evidence", "tasks", "overwrite")}
    split = options.pop("task_split")
    with in_turn(out) as (collected, report):
        return write_recipe(
            Path(recipe), name, file, data=common, each=each, settings=settings, split=split,
            options=options, told=out.note, collected=collected, progress=report, **ours,
        )  # fmt: skip


def _sources(
    data: tuple[str, ...], separator: str | None, split: str
) -> tuple[Data | None, dict[str, Data]]:
    """The data of all experts, and that of single ones."""
    from mergewise.evidence import Data

    between = (separator or "").replace("\\n", "\n")
    opened: dict[str, Data] = {}

    def source(text: str) -> Data:
        path = text if text.startswith("datasets:") else Path(text)
        opened.setdefault(text, Data(path, split=split, separator=between))
        return opened[text]

    common = [text for text in data if not _named(text)]
    if len(common) > 1:
        raise click.UsageError("--data for all experts is given twice; name experts: MODEL=D")
    each = {found[0]: source(found[1]) for text in data if (found := _named(text))}
    return source(common[0]) if common else None, each


def _free(output: str, recipe: str, plot: str | None, overwrite: bool) -> Path:
    """See that the files can be written, before any work."""
    from mergewise.errors import OutputError

    file = Path(output)
    for path in (file, *([Path(plot)] if plot else [])):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: a file in a folder that exists expected")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; choose another name, or pass --overwrite")
    if file.exists() and file.samefile(recipe):
        raise OutputError(f"{file}: this is the recipe itself; choose another name")
    return file


def _check_recipe(out: Output, file: Path, recipe: Path) -> None:
    """Models that lie beside the recipe must be found from the output's folder too."""
    from mergewise.errors import OutputError
    from mergewise.recipe import load_recipe

    loaded = load_recipe(recipe)
    if loaded.output.guide is not None:
        out.warn(
            f"{recipe}: its own `guide` is not read here, settings and data neither; give them as "
            "options. `mergewise merge` does what it says"
        )
    for model in loaded.output.models:
        path = Path(model.path)
        here, there = path.exists(), (recipe.parent / path).exists()
        if not here and there and not (file.parent / path).exists():
            raise OutputError(
                f"{file}: {model} is found from the recipe's folder, {recipe.parent}, and would "
                "not be from there; write the output into that folder"
            )


def _named(text: str) -> tuple[str, str] | None:
    """The model and its data in ``MODEL=D``; None if there is no such file as the whole is."""
    model, equals, data = text.partition("=")
    return (model, data) if equals and model and not Path(text).exists() else None


def _finish(
    out: Output,
    name: str,
    guided: Guided,
    file: Path,
    plot: str | None,
    as_json: bool,
) -> None:
    from mergewise.report.guides import guided_dict, picture

    for warning in guided.warnings:
        out.warn(warning)
    for note in guided.notes:
        out.note(note)
    if plot and not guided.maps:
        out.warn(f"{plot} was not drawn: {name} finds no numbers by layer and component")
        plot = None
    if plot:
        from mergewise.checkpoint import write_file

        write_file(Path(plot), picture(guided, f"What {name} found in each expert").encode())
        out.note(f"picture: {plot}")
    if as_json:
        out.json({"recipe": str(file), "plot": plot, **guided_dict(guided)})
    else:
        out.line(str(file))
