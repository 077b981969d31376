"""`mergewise collect`: statistics of a model on data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergewise.cli._collecting import collecting
from mergewise.cli._interrupt import terminable
from mergewise.cli._options import (
    access_options,
    json_option,
    our_command,
    read_device,
    read_size,
)
from mergewise.cli._output import Output, count
from mergewise.cli._pairs import scalar, scalars
from mergewise.cli._progress import show_seconds

if TYPE_CHECKING:
    from mergewise.evidence import Evidence

_DTYPES = ("bfloat16", "float16", "float32", "float64")
_ROLES = ("causal_lm", "body", "text_classifier", "image_classifier")


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int]:
    """``1/4``, counted from 1, as the (0, 4) of the library."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value or "1/1")
    if found and 1 <= int(found[1]) <= int(found[2]):
        return int(found[1]) - 1, int(found[2])
    raise click.BadParameter(f"{value!r}: K/N expected, such as 1/4, the first of four shares")


def _rows(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int | None] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{0,12}):(\d{0,12})", value)
    if found:
        first, last = int(found[1] or 0), int(found[2]) if found[2] else None
        if last is None or first < last:
            return first, last
    raise click.BadParameter(f"{value!r}: FROM:TO expected, such as 0:500, the first 500 rows")


def _settings(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """``statistic.option=value``, the value as in YAML."""
    found: dict[str, dict[str, Any]] = {}
    for value in values:
        name, equals, text = value.partition("=")
        statistic, dot, option = name.partition(".")
        if not (equals and dot and statistic and option):
            raise click.BadParameter(
                f"{value!r}: STATISTIC.OPTION=VALUE expected, such as input_gram.max_channels=4096"
            )
        found.setdefault(statistic, {})[option] = scalar(text)
    return found


@our_command(name="collect")
@click.argument("statistics", metavar="STATISTIC[,STATISTIC...]", required=False)
@click.argument("checkpoint", required=False, type=click.Path())
@click.option("--data", metavar="D", help="File, or datasets:NAME; --list tells what is needed.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="The evidence file.")
@click.option("--with", "other", metavar="OTHER", help="The second model, where two are compared.")
@click.option(
    "--set", "options", multiple=True, metavar="KEY=VALUE", callback=_settings,
    help="An option, such as --set input_gram.max_channels=4096; may be repeated.",
)  # fmt: skip
@click.option(
    "--batch-size", metavar="N", type=click.IntRange(min=1), default=8, show_default=True,
    help="Sequences at a time; changes nothing but speed and memory.",
)  # fmt: skip
@click.option(
    "--max-length", metavar="N", type=click.IntRange(min=1),
    help="Tokens of a sequence (512); a longer text is cut into several.",
)  # fmt: skip
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N records.")
@click.option("--rows", metavar="A:B", callback=_rows, help="Which records, from 0.")
@click.option("--share", metavar="K/N", callback=_share, help="Every N-th record, for one worker.")
@click.option("--split", default="train", show_default=True, help="Of .npz files and datasets.")
@click.option("--separator", help="Between the records of a text file, such as '\\n%%\\n'.")
@click.option("--template", help="Text of a record, such as '{question} {answer}'.")
@click.option(
    "--prepare", multiple=True, metavar="KEY=VALUE", callback=scalars("mean=0.5", "NAME=VALUE"),
    help="How images are prepared, such as --prepare mean=0.5; may be repeated.",
)  # fmt: skip
@click.option("--role", type=click.Choice(_ROLES), help="Instead of what the config says.")
@click.option("--device", default="cpu", callback=read_device, help="auto, cpu or cuda:N.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Instead of the checkpoint's own.")
@click.option("--offload", is_flag=True, help="Read each layer from disk when it runs.")
@click.option("--memory", metavar="SIZE", callback=read_size, help="Most memory for sums: 1GB.")
@click.option("--float64", is_flag=True, help="Add matrices in float64.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of labels that are drawn.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code of the checkpoint.")
@click.option("--list", "listed", is_flag=True, help="List the statistics, or explain one.")
@access_options
@json_option
def command(
    out: Output,
    statistics: str | None,
    checkpoint: str | None,
    data: str | None,
    output: str | None,
    listed: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Collect STATISTICs of CHECKPOINT on data into a file.

    Several statistics, separated by commas, share one pass. Padding is left out. The files of
    several workers add up: `mergewise evidence merge`. Prints FILE.
    """
    if listed:
        _list(out, statistics, as_json)
        return
    needed = {"STATISTIC": statistics, "CHECKPOINT": checkpoint, "--data": data, "-o": output}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise click.UsageError(
            f"{' and '.join(missing)} missing; `mergewise collect --list` lists the statistics"
        )
    found = _run(out, str(statistics), str(checkpoint), str(data), str(output), options)
    if as_json:
        from mergewise.report.evidence import evidence_dict

        out.json(evidence_dict(found))
    else:
        out.line(str(found.path))


def _list(out: Output, names: str | None, as_json: bool) -> None:
    from mergewise.evidence.statistics import all_statistics, get_statistic
    from mergewise.report.statistics import statistic_dict, statistic_page, statistics_list

    known = all_statistics()
    chosen = [get_statistic(n.strip()) for n in names.split(",")] if names else [*known.values()]
    if as_json:
        out.json([statistic_dict(statistic) for statistic in chosen])
    elif names:
        out.data(*(part for statistic in chosen for part in statistic_page(statistic)))
    else:
        out.data(*statistics_list(chosen))
        out.note("`mergewise collect --list STATISTIC` explains one")


def _run(
    out: Output, statistics: str, checkpoint: str, data: str, output: str, options: dict[str, Any]
) -> Evidence:
    out.when_interrupted = lambda: f"interrupted; nothing was written to {output}"
    with terminable(), collecting(out) as report:
        from mergewise.evidence import Data, collect

        path = data if data.startswith("datasets:") else Path(data)
        between = (options.pop("separator") or "").replace("\\n", "\n")
        source = Data(path, split=options["split"], separator=between)
        found = collect(statistics, checkpoint, source, output, progress=report, **options)
    _tell(out, found)
    return found


def _tell(out: Output, found: Evidence) -> None:
    part = found.record.parts[-1]
    tensors = len({tensor for _, tensor in found.entries})
    seen = ""
    if "tokens" in part:
        seen = (
            f" from {count(part['records'], 'record')} ({count(part['tokens'], 'token')}), "
            f"{show_seconds(part['seconds'])}"
        )
    out.note(f"{', '.join(found.statistics)} of {count(tensors, 'tensor')}{seen}")
    for note in found.record.notes:
        out.warn(note)
    if found.record.uncovered:
        first = ", ".join(found.record.uncovered[:3])
        more = ", …" if found.record.uncovered[3:] else ""
        out.note(f"{count(len(found.record.uncovered), 'tensor')} not described: {first}{more}")
