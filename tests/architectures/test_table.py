"""The table of docs/architectures.md is that of the zoo.

``python tests/architectures/test_table.py`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from _zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
START, END = "<!-- table: tests/architectures/test_table.py -->\n", "<!-- end of table -->"


def table() -> str:
    families = dict.fromkeys(entry.family for entry in ZOO)
    rows = [
        (family, ", ".join(f"{e.title} (`{e.model}`)" for e in ZOO if e.family == family))
        for family in families
    ]
    lines = [f"| {family} | {models} |" for family, models in rows]
    return "\n".join(["| kind | models (classes of `transformers`) |", "|---|---|", *lines, ""])


def test_the_page_lists_what_is_tried() -> None:
    page = PAGE.read_text()
    assert page.partition(START)[2].partition(END)[0] == table(), "run this file to write it anew"


def test_no_entry_is_there_twice() -> None:
    assert len({entry.id for entry in ZOO}) == len(ZOO) >= 34


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
