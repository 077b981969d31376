"""`mergewise average`: the checkpoints of one training run as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergewise.cli._merge import run_options, run_recipe, show_result
from mergewise.cli._options import access_options, json_option, our_command
from mergewise.cli._output import Output

_METHODS = ("uniform", "ema", "swa", "lawa", "mwa", "swad", "weights")
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_WHICH = ("match", "base", "dtype", "rank", "space")
_SETTINGS = (
    "start", "stop", "every", "last", "decay", "debias", "warm_up", "metric", "p", "better", "log",
    "converge", "tolerate", "ratio", "weights", "normalize",
)  # fmt: skip


@our_command(name="average")
@click.argument("run", metavar="FOLDER", type=click.Path())
@click.argument("folder", metavar="[OUT]", required=False, type=click.Path())
@click.option(
    "--method", type=click.Choice(_METHODS), default="uniform", show_default=True,
    help="ema: moving average; swa: equal weights from a step on; lawa: of the last; mwa: by what "
    "was logged; swad: in the valley of the validation loss; weights: as given.",
)  # fmt: skip
@click.option("--match", metavar="GLOB", help="Which entries of FOLDER, such as 'step_*'.")
@click.option("--start", metavar="STEP", type=int, help="The first step that counts.")
@click.option("--stop", metavar="STEP", type=int, help="The last step that counts.")
@click.option("--every", metavar="K", type=int, help="Only every so many checkpoints.")
@click.option("--last", metavar="K", type=int, help="Only the last so many (lawa: 6).")
@click.option("--decay", metavar="D", type=float, help="ema: what stays at each checkpoint.")
@click.option("--debias", is_flag=True, help="ema: begin with zero, divide by 1 - decay^n.")
@click.option("--warm-up", is_flag=True, help="ema: a decay of at most (1 + t) / (10 + t).")
@click.option("--metric", metavar="NAME", help="mwa (loss), swad (eval_loss): what was logged.")
@click.option("--log", metavar="FILE", help="mwa, swad: a trainer's state, or a table.")
@click.option("--p", metavar="P", type=float, help="mwa: 0 gives the mean, much the best one (1).")
@click.option(
    "--better", type=click.Choice(("auto", "less", "more")), help="mwa: which metric is better."
)
@click.option("--converge", metavar="N", type=int, help="swad: starts at the least of N (3).")
@click.option("--tolerate", metavar="N", type=int, help="swad: ends before N bad ones (6).")
@click.option("--ratio", metavar="R", type=float, help="swad: bad is so much worse (0.3).")
@click.option("--weights", metavar="W", help="weights: numbers such as 0.6,0.7,-0.3, or a file.")
@click.option("--normalize", is_flag=True, help="weights: divide by their sum.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of the result.")
@click.option("--base", metavar="MODEL", help="Of adapters: their base, if they do not name it.")
@click.option("--rank", metavar="R", type=int, help="Of adapters: cut the result to this rank.")
@click.option(
    "--space", type=click.Choice(("delta", "factor")),
    help="Of adapters: average B·A (ranks add up), or A and B apart.",
)  # fmt: skip
@click.option("--recipe", "shown", is_flag=True, help="Print the recipe and stop.")
@run_options
@access_options
@json_option
def command(
    out: Output, run: str, folder: str | None, method: str, shown: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Average the checkpoints of one training run.

    FOLDER holds checkpoint-500 and so on, as a trainer leaves them, or files. OUT is what a recipe
    with explicit weights gives. Interrupted, the same command continues. Prints OUT.
    """
    from mergewise.trajectories import average_recipe, told_of_the_run

    asked = {key: options.pop(key) for key in (*_WHICH, *_SETTINGS)}
    given = {k: v for k, v in asked.items() if v is not None and v is not False}
    made = average_recipe(run, method, **given)
    for note in made.notes:
        out.note(note)
    if shown:
        _print(out, made.text, as_json)
        return
    if not folder:
        raise click.UsageError("give OUT, a folder for the output, or --recipe")
    with told_of_the_run(run):
        result, summary = run_recipe(out, made.recipe, Path(folder), options)
    found = {"steps": list(made.steps), "weights": list(made.weights)}
    show_result(out, result, summary | found, as_json)


def _print(out: Output, text: str, as_json: bool) -> None:
    if as_json:
        out.json({"recipe": text})
    else:
        for line in text.splitlines():
            out.line(line)
