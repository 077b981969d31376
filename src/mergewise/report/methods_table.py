"""The README's table of methods by family, written from the registry.

python -m mergewise.report.methods_table                    # print
python -m mergewise.report.methods_table --write README.md  # replace what is between the marks
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mergewise.errors import MergewiseError
from mergewise.report._families import FAMILIES, family_of

BEGIN = "<!-- methods:begin -->"
END = "<!-- methods:end -->"


PAGES = "docs/methods"


def methods_table() -> str:
    """Markdown: a row for each family, with its built-in or installed methods."""
    from mergewise.methods import all_methods

    methods = list(all_methods().values())
    rows = ["| family | methods |", "|---|---|"]
    for key, (title, _) in FAMILIES.items():
        mine = [f"[`{m.name}`]({PAGES}/{m.name}.md)" for m in methods if family_of(m) == key]
        if mine:
            rows.append(f"| {title} | {', '.join(mine)} |")
    return "\n".join(rows)


def insert(text: str, table: str) -> str:
    """`text` with `table` between the marks.

    Raises:
        MergewiseError: if the two marks are not there, in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise MergewiseError(f"expected the lines {BEGIN} and {END}, in this order")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or write it into a file. Returns the exit code."""
    parser = argparse.ArgumentParser(description="the table of merge methods, in Markdown")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in FILE")
    file = parser.parse_args(arguments).write
    if file is None:
        print(methods_table())
        return 0
    try:
        file.write_text(insert(file.read_text("utf-8"), methods_table()), "utf-8")
    except (MergewiseError, OSError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
