"""One page that compares families of methods (averages, subspaces, ...) over the lab's results.

python -m benchmarks.lab.kinds            # print
python -m benchmarks.lab.kinds --publish  # write kinds.md, kinds.svg, methods.json in docs/results
                                          # and from the last the pages in docs/methods
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab._report import LEAST
from benchmarks.lab._results import Column, Measures, Results, Row, Run, Setting, spread
from mergewise.checkpoint import write_file
from mergewise.errors import MergewiseError
from mergewise.methods import get_method
from mergewise.report._families import FAMILIES, family_of
from mergewise.report._measured import FILE as MEASURED
from mergewise.report.chart import Dot, dot_rows
from mergewise.report.method_pages import write as write_methods

PAGES = Path(__file__).parents[2] / "docs/results"
LABS = ("digits", "vision", "text", "language")
_SETTINGS: tuple[Setting, ...] = ("default", "tuned")


@dataclass(frozen=True)
class Entry:
    """A row of a lab's results: how far it goes from the base (0) to the experts (1)."""

    name: str
    method: str
    kind: str
    setting: Setting
    nai: float


def read(document: Mapping[str, Any]) -> Results:
    """Results as the lab published them."""
    rows = [
        Row(**{**row, "runs": {
            setting: {int(seed): Run(**run) for seed, run in runs.items()}
            for setting, runs in row["runs"].items()
        }})
        for row in document["rows"]
    ]  # fmt: skip
    columns = [Column(**column) for column in document["columns"]]
    return Results(document["family"], document["title"], columns, document["seeds"], rows)


def entries(results: Results) -> Iterator[Entry]:
    """Every merged row at every setting."""
    measures = Measures(results)
    for row in results.rows:
        kind = _kind(row)
        for setting in _SETTINGS:
            found = spread(results, row, setting, measures.nai)
            if kind and found and found.mean == found.mean:
                yield Entry(row.name, str(row.method), kind, setting, found.mean)


def _kind(row: Row) -> str | None:
    try:
        return family_of(get_method(row.method)) if row.method else None
    except MergewiseError:
        return None  # a method that is no longer


def page(labs: Mapping[str, Sequence[Entry]]) -> str:
    """The page, in Markdown."""
    parts = [
        "# Families of methods compared",
        "",
        "How far merges of several experts go from the base (0) to each task's own expert (100), "
        "the mean over tasks and seeds, from the results of " + ", ".join(
            f"[{lab}]({lab}.md)" for lab in labs) + ". "
        "Of each [family of methods](../methods/README.md): the best, the median, and how many "
        "rows there are (a method may have several, with other parameters). The best of many is "
        "helped by chance; the median is not, but depends on which methods were tried.",
        "",
        "![families of methods](kinds.svg)",
    ]  # fmt: skip
    for setting in _SETTINGS:
        said = "at default settings" if setting == "default" else "with the scale tuned"
        parts += ["", f"## The best and the median, {said}", "", *_table(labs, setting)]
    parts += ["", *_words(labs)]
    return "\n".join([*parts, ""])


def _table(labs: Mapping[str, Sequence[Entry]], setting: Setting) -> Iterator[str]:
    yield "| family | " + " | ".join(labs) + " |"
    yield "|---|" + "---|" * len(labs)
    for kind in FAMILIES:
        cells = [_cell([e for e in found if (e.kind, e.setting) == (kind, setting)])
                 for found in labs.values()]  # fmt: skip
        if any(cells):
            yield f"| {FAMILIES[kind][0]} | " + " | ".join(cell or "–" for cell in cells) + " |"


def _cell(found: Sequence[Entry]) -> str:
    if not found:
        return ""
    best = max(found, key=lambda entry: entry.nai)
    median = statistics.median(entry.nai for entry in found)
    return f"{_shown(best.nai)} {best.name}; {_shown(median)} of {len(found)}"


def _shown(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _words(labs: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    yield "## First in each lab, at default settings"
    yield ""
    for lab, found in labs.items():
        plain = sorted((e for e in found if e.setting == "default"), key=lambda e: -e.nai)
        first = ", ".join(f"{e.name} {_shown(e.nai)}" for e in plain[:3])
        yield f"* {lab}: {first}"


def figure(labs: Mapping[str, Sequence[Entry]]) -> str:
    """The best of each family at default settings, a mark for each lab."""
    rows: list[tuple[str, dict[str, Dot]]] = []
    for kind, (title, _) in FAMILIES.items():
        dots: dict[str, Dot] = {}
        for lab, found in labs.items():
            mine = [e.nai for e in found if (e.kind, e.setting) == (kind, "default")]
            if mine:
                dots[lab] = 100 * max(mine)
        if dots:
            rows.append((title, dots))
    axis = "from the base (0) to the experts (100); more is better"
    note = "The best of each family at default settings; mean over tasks and seeds."
    return dot_rows("Families of methods", rows, axis, notes=[note], least=LEAST)


def by_method(labs: Mapping[str, Sequence[Entry]], absent: Mapping[str, str]) -> str:
    """What `mergewise.report.method_pages` shows of each method, as JSON.

    Args:
        absent: why a method is in no lab, by name.
    """
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for lab, found in labs.items():
        for entry in found:  # a row's default stands before its tuned setting
            mine = rows.setdefault(entry.method, {}).setdefault(entry.name, {})
            mine.setdefault(lab, []).append(round(100 * entry.nai, 1))
    away = {name: reason for name, reason in absent.items() if name not in rows}
    made = {"labs": list(labs), "rows": rows, "absent": away}
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


def load(folder: Path = PAGES) -> dict[str, list[Entry]]:
    """The published results of every lab there is."""
    return {lab: list(entries(read(found))) for lab, found in _documents(folder).items()}


def left_out(folder: Path = PAGES) -> dict[str, str]:
    """Why methods take no part in a lab, by name."""
    return {
        name: reason
        for found in _documents(folder).values()
        for name, reason in found["left_out"].items()
    }


def _documents(folder: Path) -> dict[str, Any]:
    files = {lab: folder / f"{lab}.json" for lab in LABS}
    return {
        lab: json.loads(file.read_text("utf-8")) for lab, file in files.items() if file.is_file()
    }


def main(arguments: Sequence[str]) -> int:
    """Print the page, or write it with its figure."""
    labs = load()
    if list(arguments) != ["--publish"]:
        print(page(labs))
        return 0
    write_file(PAGES / "kinds.md", page(labs).encode())
    write_file(PAGES / "kinds.svg", figure(labs).encode())
    write_file(PAGES / MEASURED, by_method(labs, left_out()).encode())
    write_methods(PAGES.parent / "methods")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
