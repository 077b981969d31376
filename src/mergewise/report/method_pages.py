"""A page in Markdown for each merge method, and an index, written from the registry.

python -m mergewise.report.method_pages                       # print the index
python -m mergewise.report.method_pages --write docs/methods  # write all pages

A page shows what the lab measured, if ``docs/results/methods.json`` is there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.report._families import FAMILIES, family_of
from mergewise.report._measured import lab_lines, measured_beside
from mergewise.report._where_to_start import where_to_start
from mergewise.report.methods import models_needed, symbols
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from mergewise.methods import Method, Param

MARK = "<!-- written by mergewise.report.method_pages -->"
INDEX = "README.md"


def method_pages(found: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Every page by its file's name.

    Args:
        found: what the lab measured; see `mergewise.report._measured`.
    """
    from mergewise.methods import all_methods

    methods = list(all_methods().values())
    pages = {
        f"{method.name}.md": "\n".join([*_page(method, found or {}), ""]) for method in methods
    }
    return {INDEX: "\n".join([*_index(methods), ""]), **pages}


def _index(methods: list[Method]) -> Iterator[str]:
    yield from (MARK, "# Merge methods", "")
    yield (
        "One page each: formula, when to use it, what it needs, what the lab measured, parameters, "
        "a recipe. `mergewise methods NAME` shows the same, but for the measurements. "
        "[Families compared](../results/kinds.md). What papers call a method is often a setting of "
        "`task_arithmetic`: [such recipes](../arithmetic.md). The checkpoints of one training run: "
        "[`mergewise average`](../trajectories.md)."
    )
    yield from where_to_start()
    for key, (title, about) in FAMILIES.items():
        mine = [method for method in methods if family_of(method) == key]
        if mine:
            yield from ("", f"## {title}", "", about, "", "| method | what it does |", "|---|---|")
            yield from (f"| [`{m.name}`]({m.name}.md) | {_cell(m.summary)} |" for m in mine)


def _page(method: Method, found: Mapping[str, Any]) -> Iterator[str]:
    yield from (MARK, f"# {method.name}", "", f"{_sentence(method.summary)}.", "")
    yield from ("```text", *method.formula.strip("\n").splitlines(), "```", "")
    if meant := symbols(method):
        yield from (f"{meant}.", "")
    if method.advice:
        yield from (f"**When to use it.** {method.advice}", "")
    yield from (f"**Needs** {models_needed(method)}.{_collected(method)}", "")
    yield from (f"**From** {_linked(method.source)}. Variant: {method.variant}.", "")
    yield from lab_lines(method.name, found)
    yield from _parameters(method)
    yield from ("## Example", "", "```yaml", method.example.strip(), "```", "")
    title = FAMILIES[family_of(method)][0]
    yield f"Family: {title}. [All methods]({INDEX})"


def _collected(method: Method) -> str:
    """How to come by the evidence."""
    from mergewise.evidence.statistics import get_statistic

    names = dict.fromkeys(need.statistic for need in method.needs_at_defaults())
    if not names:
        return ""
    if any(get_statistic(name).need == "file" for name in names):
        return (
            f" Read by `mergewise collect {','.join(names)} MODEL --data CHECKPOINT -o FILE` from "
            f"a trainer's checkpoint ([how](../guides.md#{method.name}))."
        )
    return (
        f" Collected by `mergewise collect {','.join(names)} MODEL --data DATA -o FILE` "
        f"([how](../guide.md#merge-with-evidence)), or of all models by the guide "
        "[calibrate](../guides.md#calibrate)."
    )


def _sentence(summary: str) -> str:
    """With a capital, unless it begins with a method's name."""
    from mergewise.methods import all_methods

    first = summary.split(maxsplit=1)[0].rstrip(",")
    return summary if first in all_methods() else summary[0].upper() + summary[1:]


def _parameters(method: Method) -> Iterator[str]:
    if not method.params:
        return
    yield from ("## Parameters", "", "| name | type | default | allowed | per model | meaning |")
    yield "|---|---|---|---|---|---|"
    for name, param in method.params.items():
        yield "| " + " | ".join(map(_cell, _row(name, param))) + " |"
    yield ""
    if any(param.native for param in method.params.values()):
        yield from ("\\* not in mergekit", "")


def _row(name: str, param: Param) -> list[str]:
    default = "required" if param.required else show_value(param.default)
    return [
        f"`{name}`" + "\\*" * param.native, param.kind.__name__, default, param.range,
        "yes" if param.per_model else "", param.help,
    ]  # fmt: skip


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def _linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def write(folder: Path) -> None:
    """Write all pages, and remove those of methods that are gone."""
    pages = method_pages(measured_beside(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.md"):
        if file.name not in pages and file.read_text("utf-8").startswith(MARK):
            file.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Print the index, or write the pages. Returns the exit code."""
    parser = argparse.ArgumentParser(description="pages of merge methods, in Markdown")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write all pages there")
    folder = parser.parse_args(arguments).write
    if folder is None:
        print(method_pages()[INDEX])
        return 0
    try:
        write(folder)
    except (OSError, ValueError) as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
