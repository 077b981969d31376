"""A page in Markdown for each merge method, and an index, written from the registry.

python -m mergewise.report.method_pages                       # print the index
python -m mergewise.report.method_pages --write docs/methods  # write all pages
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise.report._families import FAMILIES, family_of
from mergewise.report.methods import models_needed
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from mergewise.methods import Method, Param

MARK = "<!-- written by mergewise.report.method_pages -->"
INDEX = "README.md"


def method_pages() -> dict[str, str]:
    """Every page by its file's name."""
    from mergewise.methods import all_methods

    methods = list(all_methods().values())
    pages = {f"{method.name}.md": "\n".join([*_page(method), ""]) for method in methods}
    return {INDEX: "\n".join([*_index(methods), ""]), **pages}


def _index(methods: list[Method]) -> Iterator[str]:
    yield from (MARK, "# Merge methods", "")
    yield (
        "One page each: formula, when to use it, what it needs, parameters, a recipe. "
        "`mergewise methods NAME` shows the same. How they compare on the lab's tasks: "
        "[by family](../results/kinds.md)."
    )
    for key, (title, about) in FAMILIES.items():
        mine = [method for method in methods if family_of(method) == key]
        if mine:
            yield from ("", f"## {title}", "", about, "", "| method | what it does |", "|---|---|")
            yield from (f"| [`{m.name}`]({m.name}.md) | {_cell(m.summary)} |" for m in mine)


def _page(method: Method) -> Iterator[str]:
    yield from (MARK, f"# {method.name}", "", f"{method.summary}.", "")
    yield from ("```text", *method.formula.strip("\n").splitlines(), "```", "")
    if method.advice:
        yield from (f"**When to use it.** {method.advice}", "")
    yield from (f"**Needs** {models_needed(method)}.", "")
    yield from (f"**From** {_linked(method.source)}. Variant: {method.variant}.", "")
    yield from _parameters(method)
    yield from ("## Example", "", "```yaml", method.example.strip(), "```", "")
    title = FAMILIES[family_of(method)][0]
    yield f"Family: {title}. [All methods]({INDEX})"


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
    pages = method_pages()
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
    except OSError as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
