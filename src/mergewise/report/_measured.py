"""What the lab measured of a merge method, for its page.

The numbers are published beside the pages, in ``results/methods.json``, by
``python -m benchmarks.lab.kinds --publish``; without that file pages have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "methods.json"
_PLAIN = "linear"
_COMPARED = "`linear`, to compare"
_SAID = (
    "**In the lab**: how far from the base (0) to the experts (100) merges of several come, as set "
    "by default when that was measured{} ([how](../lab.md), [others](../results/kinds.md))."
)


def measured_beside(pages: Path) -> Mapping[str, Any]:
    """What is published beside a folder of pages; nothing if there is no such file.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    file = pages.parent / "results" / FILE
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def lab_lines(method: str, found: Mapping[str, Any]) -> Iterator[str]:
    """A table of a method's rows in the lab, or why it has none."""
    rows = found.get("rows", {})
    if method in rows:
        mine, plain = rows[method], rows.get(_PLAIN, {}).get(_PLAIN)
        shown = mine if method == _PLAIN or plain is None else {**mine, _COMPARED: plain}
        tuned = any(len(numbers) > 1 for row in mine.values() for numbers in row.values())
        yield _SAID.format(" / with the scale tuned" if tuned else "")
        yield from ("", *_table(found["labs"], shown), "")
    elif method in found.get("absent", {}):
        yield from (f"**Not in the lab**: it {found['absent'][method]}.", "")


def _table(labs: list[str], rows: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    links = [f"[{lab}](../results/{lab}.md)" for lab in labs]
    yield "| | " + " | ".join(links) + " |"
    yield "|---|" + "--:|" * len(labs)
    for name, numbers in rows.items():
        cells = [" / ".join(map(_shown, numbers.get(lab, ()))) or "–" for lab in labs]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _shown(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")
