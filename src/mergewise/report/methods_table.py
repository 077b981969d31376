"""The README's table of methods, written from the registry.

python -m mergewise.report.methods_table                    # print
python -m mergewise.report.methods_table --write README.md  # replace what is between the marks
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise.errors import MergewiseError

if TYPE_CHECKING:
    from mergewise.methods import Method

BEGIN = "<!-- methods:begin -->"
END = "<!-- methods:end -->"


def methods_table() -> str:
    """Markdown: one row for each built-in or installed method."""
    from mergewise.methods import all_methods

    rows = [
        "| method | what it does | base | evidence | parameters | from |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_row(method) for method in all_methods().values()]
    return "\n".join(rows)


def _row(method: Method) -> str:
    names = ", ".join(f"`{name}`" for name in method.params) or "none"
    needed = [
        f"`{need.statistic}`" + " of the base" * (need.of == "base")
        for need in method.needs_at_defaults()
    ]
    evidence = ", ".join(needed) or "none"
    cells = (f"`{method.name}`", method.summary, method.base, evidence, names, method.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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
