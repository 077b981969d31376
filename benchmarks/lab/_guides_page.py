"""One page that puts the families' comparisons of guides together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lab._guides_arms import ALONE, OWN
from benchmarks.lab._guides_report import MAIN, PAPER, TITLES, show
from mergewise.checkpoint import write_file

NAME = "guides.md"
Document = Mapping[str, Any]


def write_page(folder: Path) -> Path:
    """Write the page of every ``guides-FAMILY.json`` in a folder."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("guides-*.json"))]
    write_file(folder / NAME, page(found).encode())
    return folder / NAME


def page(documents: Sequence[Document]) -> str:
    """The page."""
    parts = [
        "# Guided against uniform density",
        "",
        "Does it help to keep more of a task vector in some layers, or in some elements, than a "
        "uniform density keeps everywhere? Each family's page has the cells, the intervals and "
        "what was held equal: "
        + ", ".join(f"[{d['family']}](guides-{d['family']}.md)" for d in documents)
        + ". [The lab](../lab.md#guided-against-uniform) says how.",
        "",
        "*reversed* and *shuffled* are controls: densities mirrored about their mean, or dealt to "
        "other tensors. *measured* orders tensors by what trimming each alone costs the expert: "
        "what LEWIS's form could reach if it knew.",
        "",
        "## LEWIS' claim",
        "",
        "Guided beats uniform at the same mean density on the task that the calibration "
        "resembles: one expert alone, calibrated on its own task.",
        "",
        *_claims(documents),
        "",
    ]
    for set_, title in TITLES.items():
        rows = list(_rows(documents, set_))
        if rows:
            parts += [f"## {title}, calibrated on its own task", "", *rows, ""]
    parts += [
        "Gains in nats over uniform density, and how many cells are better : worse; bold where "
        "the 95 % interval over experts lies above 0, italic where it lies below.",
        "",
    ]
    parts += ["## In words", ""]
    for document in documents:
        parts += [f"**{document['family']}**", "", *(f"* {w}" for w in document["words"]), ""]
    return "\n".join(parts)


def _claims(documents: Sequence[Document]) -> Iterator[str]:
    held = []
    for document in documents:
        for row in _wanted(document, ALONE):
            if row["arm"] in PAPER:
                held.append((document["family"], row["arm"], row["word"]))
    for word, said in (
        ("better", "It holds in"), ("worse", "It is reversed in"),
        ("undecided", "It cannot be told from no difference in"),
    ):  # fmt: skip
        names = [f"{family} ({arm})" for family, arm, found in held if found == word]
        yield f"* {said} {len(names)} of {len(held)} cases{': ' if names else ''}{', '.join(names)}"


def _wanted(document: Document, set_: str) -> list[Mapping[str, Any]]:
    return [
        row
        for row in document["rows"]
        if row["set"] == set_ and row["calibration"] == OWN and row["metric"] in MAIN
    ]


def _rows(documents: Sequence[Document], set_: str) -> Iterator[str]:
    found = {d["family"]: {row["arm"]: row for row in _wanted(d, set_)} for d in documents}
    found = {family: rows for family, rows in found.items() if rows}
    arms = list(dict.fromkeys(arm for rows in found.values() for arm in rows))
    if not arms:
        return
    seeds = {d["family"]: len(d["seeds"]) for d in documents}
    heads = [f"{name}, {seeds[name]} seed{'s' if seeds[name] > 1 else ''}" for name in found]
    yield "| | " + " | ".join(heads) + " |"
    yield "|---" * (len(found) + 1) + "|"
    for arm in arms:
        cells = [_cell(rows.get(arm)) for rows in found.values()]
        yield f"| {arm} | " + " | ".join(cells) + " |"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    mark = {"better": "**", "worse": "*"}.get(row["word"], "")
    return f"{mark}{show(row['mean'], row['metric'])}{mark} ({row['better']} : {row['worse']})"
