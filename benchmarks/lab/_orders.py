"""Try published orders on what a run found."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.lab._claims import CLAIMS, MERGED, Claim
from benchmarks.lab._results import JOINT, PRETRAINED, TUNED, Measures, Results, Row

Verdict = Literal["holds", "does not hold", "cannot be tried"]
_SETTINGS = ("default", "tuned")
_REFERENCES = (PRETRAINED, TUNED, JOINT)


@dataclass(frozen=True)
class Finding:
    """What became of a claim here.

    Attributes:
        gap: mean over seeds of the least row on the left less the best on the right, in points;
            None where it cannot be tried.
        seeds: in how many seeds it holds, of how many.
        missing: what is not in this run; the others were tried without it.
    """

    claim: Claim
    verdict: Verdict
    gap: float | None = None
    seeds: tuple[int, int] = (0, 0)
    missing: str = ""

    def __str__(self) -> str:
        if self.gap is None:
            return f"{self.verdict} (no {self.missing})"
        wanted = f", {self.claim.margin:+g} wanted" if self.claim.margin else ""
        of = f"{self.seeds[0]} of {self.seeds[1]} seeds"
        without = f", without {self.missing}" if self.missing else ""
        return f"{self.verdict}: {self.gap:+.1f} points{wanted}, {of}{without}"

    def to_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


def tried(results: Results, claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """Every claim that is meant for this family, tried."""
    mine = [c for c in claims if not c.families or results.family in c.families]
    return [_tried(results, claim) for claim in mine]


def _tried(results: Results, claim: Claim) -> Finding:
    left, gone = _sides(results, claim.left)
    right, also_gone = _sides(results, claim.right)
    missing = ", ".join(dict.fromkeys(gone + also_gone))
    if not left or not right:
        return Finding(claim, "cannot be tried", missing=missing)
    gaps = [
        min(side[seed] for side in left) - max(side[seed] for side in right)
        for seed in results.seeds
        if all(seed in side for side in left + right)
    ]
    if not gaps:
        return Finding(claim, "cannot be tried", missing="scores")
    gap = statistics.fmean(gaps)
    held = sum(_met(claim, g) for g in gaps)
    verdict: Verdict = "holds" if _met(claim, gap) else "does not hold"
    return Finding(claim, verdict, gap, (held, len(gaps)), missing)


def _met(claim: Claim, gap: float) -> bool:
    return gap >= claim.margin if claim.margin or claim.or_equal else gap > 0


Side = dict[int, float]
"""A row's quality in points, by seed."""


def _sides(results: Results, terms: Sequence[str]) -> tuple[list[Side], list[str]]:
    """The rows that terms name, and the terms that name none."""
    found: list[Side] = []
    gone: list[str] = []
    for term in terms:
        sides = _merged(results) if term == MERGED else _named(results, term)
        found += sides
        if not sides:
            gone.append(term.partition("@")[0].partition("|")[0])
    return found, gone


def _merged(results: Results) -> list[Side]:
    rows = [row for row in results.rows if row.method is not None and row.data != "per-task state"]
    return [_side(results, row, s) for row in rows for s in _SETTINGS if s in row.runs]


def _named(results: Results, term: str) -> list[Side]:
    names, _, setting = term.partition("@")
    for name in names.split("|"):
        for row in results.rows:
            if not _is(row, name):
                continue
            wanted = _wanted(row, setting)
            return [_side(results, row, wanted)] if wanted else []
    return []


def _is(row: Row, name: str) -> bool:
    if row.name in _REFERENCES:
        return row.name == name
    return _plain(name) in {_plain(row.name), _plain(row.method or "")}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+.]", "", name.lower())


def _wanted(row: Row, setting: str) -> Any:
    order = (setting,) if setting else ("reference", "tuned", "default")
    return next((s for s in order if s in row.runs), None)


def _side(results: Results, row: Row, setting: Any) -> Side:
    measure = Measures(results).quality
    values = {seed: measure(run.scores, seed) for seed, run in row.runs[setting].items()}
    return {seed: 100 * value for seed, value in values.items() if value is not None}
